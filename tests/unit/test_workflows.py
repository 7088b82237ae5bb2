"""What GitHub runs is what a person runs: make targets that exist, and actions pinned to a commit."""

import re
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"^[\w-]+/[\w-]+@[0-9a-f]{40}$")
# What a make target does not do: programs for tests, and the places where a release goes.
OTHER_PROGRAMS = ("sudo apt-get", "gh release", "docker login", "docker push", "test ")


def steps_of(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_of_a_workflow_is_pinned_to_a_commit(path):
    used = [step["uses"] for step in steps_of(path) if "uses" in step]

    assert used, f"{path.name} uses no action: nothing is checked"
    assert [action for action in used if not PINNED.match(action)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_make_targets_that_exist(path):
    targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.M)
    commands = [step["run"] for step in steps_of(path) if "run" in step]
    called = [command.removeprefix("make ") for command in commands if command.startswith("make ")]
    others = [command.split(" | ")[-1] for command in commands if not command.startswith("make ")]

    assert called, f"{path.name} calls no target of make: nothing is checked"
    assert [name for call in called for name in call.split() if name not in targets] == []
    assert [command for command in others if not command.startswith(OTHER_PROGRAMS)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_job_has_the_permissions_that_it_names_and_no_others(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))

    assert workflow["permissions"] == {}
    jobs = workflow["jobs"].items()
    assert [name for name, job in jobs if not (job["permissions"] and job["timeout-minutes"])] == []
