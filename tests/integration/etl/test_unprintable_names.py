"""Names with line ends, terminal sequences and marks that reorder text forge no line that a person reads.

JSON output has them exactly, and statements and commands that people paste still mean the object that they name.
"""

import json
import logging
import subprocess

import pytest
import yaml
from psycopg2 import sql

from etl.orchestration import alerts
from etl.orchestration.steps import log_event
from tests.results import pick

FORGED = "run 9: 5 tables in 0.1 s"
NAMES = {
    "line ends": f"t\r\n{FORGED}\r",
    "other line ends": f"t\x85{FORGED}\u2028\x0b\x0c",
    "terminal and bidi": f"t\x1b[2K\x1b[1G\u202e{FORGED}\u2066\x7f",
    "backslashes": f"t\\\n{FORGED}\\'\"",
}


def assert_readable(text):
    assert text.strip()
    assert [char for char in text if not char.isprintable() and char != "\n"] == []
    assert [line for line in text.splitlines() if line.startswith(FORGED)] == []


@pytest.fixture(params=NAMES)
def named(request, replication):
    """A replication of one table, whose name, columns and values hold such a text."""
    name = NAMES[request.param]
    names = {"table": name, "key": f"k{name}", "value": f"v{name}"}
    replication.name = name
    replication.on_source(
        compose("create table {table} ({key} text primary key, {value} text, updated_at timestamptz)", **names)
    )
    add(replication, "first", FORGED, f"third\n{FORGED}")
    return replication


def compose(text, **names):
    return sql.SQL(text).format(**{key: sql.Identifier(value) for key, value in names.items()})


def add(replication, *keys):
    statement = compose("insert into {table} values (%s, 'x', '2020-01-01')", table=replication.name)
    for key in keys:
        replication.on_source(statement, key)


def play(replication, *arguments, exit_code=0, **environment):
    """Run a command, whose output has to be readable."""
    finished = replication.command(*arguments, **environment)
    assert finished.returncode == exit_code, finished.stdout + finished.stderr
    for stream in (finished.stdout, finished.stderr):
        if stream:
            assert_readable(stream)
    return finished


def test_no_command_prints_a_forged_line(named):
    name = named.name
    first = play(named, "run", "--log-format", "json", "--json")
    play(named, "run")
    play(named, "status")
    play(named, "verify")
    named.on_target(compose("delete from raw.{table}", table=name))
    play(named, "verify", exit_code=1)
    differing = play(named, "verify", "--json", "--log-format", "json", exit_code=1)
    play(named, "verify", "--repair")
    play(named, "reset", name)
    named.on_source(compose("alter table {table} add {column} int", table=name, column=f"c{name}"))
    play(named, "run")
    exact = play(named, "status", "--json")

    (result,) = json.loads(first.stdout)["tables"]
    assert pick(result, "table", "rows_inserted") == (name, 3)
    assert {json.loads(line).get("table") for line in first.stderr.splitlines()} <= {name, None}
    assert json.loads(exact.stdout)[0]["table_name"] == name
    keys = [example["key"][f"k{name}"] for example in json.loads(differing.stdout)[0]["examples"]]
    assert sorted(keys) == sorted(["first", FORGED, f"third\n{FORGED}"])


def test_errors_and_pasted_statements_are_readable_and_exact(named):
    name = named.name
    play(named, "run", "no such\ntable", exit_code=2)
    named.on_source(compose("alter table {table} drop constraint {key}", table=name, key=constraint(named)))
    tables = named.write_tables(yaml.safe_dump({"tables": {name: {}}}))
    refused = play(named, "run", ETL_TABLES=str(tables), exit_code=1).stderr
    statement = refused[refused.index("alter table ") : refused.index(" add primary key (...)")]
    column = compose("{key}", key=f"k{name}").as_string(named.source)
    named.on_source(f"{statement} add primary key ({column})")
    play(named, "run", ETL_TABLES=str(tables))

    named.on_source(compose("alter table {table} alter {value} type int using 1", table=name, value=f"v{name}"))
    refused = play(named, "run", exit_code=1).stderr
    command = refused[refused.index("`etl reset ") + 1 : refused.rindex("`")]
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    assert shown.stdout.decode().split("\0")[:3] == ["etl", "reset", name]


def constraint(replication):
    found = "select conname from pg_constraint where contype = 'p' and conrelid >= 16384 order by oid desc limit 1"
    return replication.on_source(found)[0][0]


def test_discover_proposes_readable_lines_and_exact_statements(named):
    name = named.name
    proposed = play(named, "discover", "--scan-up-to", "0").stdout
    statements = [line.removeprefix("# ") for line in proposed.splitlines() if line.startswith("# create index")]
    for statement in statements:
        named.on_source(statement)

    document = yaml.safe_load(proposed)
    assert list(document["tables"]) == [name]
    assert len(statements) == 1
    assert "not indexed" not in play(named, "discover", "--scan-up-to", "0").stdout
    assert json.loads(play(named, "discover", "--json").stdout)[0]["name"] == name


def test_tasks_log_and_alert_readable_lines(named, caplog, webhook):
    url, messages = webhook
    caplog.set_level(logging.INFO, logger="tidemark")
    named.run()
    for event in named.events:
        log_event(event)
    alerts.tell("Tidemark: a task failed", str(refusal(named)), {"ALERT_WEBHOOK_URL": url})

    assert FORGED in caplog.text
    for record in caplog.records:
        assert_readable(record.getMessage())
    (message,) = messages
    assert_readable(message)


def refusal(replication):
    name = replication.name
    replication.on_source(compose("alter table {table} alter {value} type int using 1", table=name, value=f"v{name}"))
    (result,) = replication.run().tables
    return result.error


def test_faults_of_tables_yml_stay_lines_of_their_own(replication):
    entries = {f"a\n{FORGED}": {"watermark": 1}, f"b\n{FORGED}": {"deletes": "x\ny"}}
    tables = replication.write_tables(yaml.safe_dump({"tables": entries}))

    told = play(replication, "run", ETL_TABLES=str(tables), exit_code=2).stderr

    assert len(told.splitlines()) == 2
    assert all(line.startswith("etl: ") for line in told.splitlines())
