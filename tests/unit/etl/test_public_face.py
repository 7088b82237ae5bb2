"""What `import etl` offers, and what it costs those who import one room only."""

import subprocess
import sys

import pytest

import etl
from etl import cli


def test_every_public_name_can_be_imported():
    assert [name for name in etl.__all__ if not hasattr(etl, name)] == []


def test_unknown_name_is_rejected_as_in_python():
    with pytest.raises(AttributeError, match="module 'etl' has no attribute 'extract'"):
        etl.extract  # noqa: B018


def test_importing_one_room_loads_no_driver():
    code = "import sys, etl.policy.fence; print({'psycopg2', 'yaml', 'tenacity'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_command_line_names_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tidemark {etl.__version__}\n"
