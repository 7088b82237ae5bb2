"""A manifest is known as that of the models by what is in their files."""

import shutil

import pytest

from etl.transform.manifest import PROJECT, fingerprint

CHANGES = {
    "a model changes": lambda project: append(project / "models" / "staging" / "stg_orders.sql"),
    "a description changes": lambda project: append(project / "models" / "staging" / "_staging.yml"),
    "a macro changes": lambda project: append(project / "macros" / "builds.sql"),
    "the settings change": lambda project: append(project / "dbt_project.yml"),
    "a rule is new": lambda project: (project / "tests" / "new.sql").write_text("select 1"),
    "a snapshot is gone": lambda project: (project / "snapshots" / "_snapshots.yml").unlink(),
    "a model has moved": lambda project: (project / "models" / "staging" / "stg_orders.sql").rename(
        project / "models" / "stg_orders.sql"
    ),
    "text has moved from one file to the next": lambda project: move_text(project / "macros"),
}


def append(path):
    path.write_text(path.read_text() + "\n")


def move_text(folder):
    first, second = sorted(folder.glob("*.sql"))[:2]
    text = first.read_text()
    first.write_text(text[:-10])
    second.write_text(text[-10:] + second.read_text())


@pytest.fixture
def project(tmp_path):
    return shutil.copytree(PROJECT, tmp_path / "dbt", ignore=shutil.ignore_patterns("target", "logs"))


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_models_gives_another_fingerprint(project, change):
    before = fingerprint(project)
    CHANGES[change](project)

    assert fingerprint(project) != before


def test_build_output_and_file_times_keep_the_fingerprint(project):
    before = fingerprint(project)
    for folder in ("target", "logs"):
        (project / folder).mkdir()
        (project / folder / "manifest.sql").write_text("{}")
    (project / "README.md").write_text("")
    (project / "dbt_project.yml").touch()

    assert before == fingerprint(project) == fingerprint()
