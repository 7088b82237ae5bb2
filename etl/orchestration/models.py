"""A task for each model, with Cosmos: each has its own retries, duration and log. Begin at `build_by_model`.

Imported only if the variable `dbt_runner` is `cosmos`. Cosmos reads the tasks from a manifest. Together they are one
build in parts (see `etl.transform.lock`), which a task before them opens and a task after them closes.
"""

from __future__ import annotations

import airflow  # noqa: F401 before cosmos, which reads Airflow's settings when it is imported

# isort: split
import os
from collections.abc import Mapping
from typing import Any

from airflow.sdk import task
from cosmos import DbtTaskGroup, ExecutionConfig, ProfileConfig, ProjectConfig, RenderConfig
from cosmos.constants import DbtResourceType, ExecutionMode, InvocationMode, LoadMode, TestBehavior
from cosmos.operators.local import DbtRunLocalOperator, DbtSnapshotLocalOperator

from etl.orchestration import steps
from etl.orchestration.connections import read_environment
from etl.orchestration.defaults import AFTER_EITHER_WAY, DBT_LIMIT
from etl.transform.lock import Build
from etl.transform.manifest import PROJECT, find_manifest, manifest_path


class PartOfBuild:
    """Holds a part of the build while Cosmos has dbt build a model, with the password in the environment."""

    extra_context: Mapping[str, Any]

    def build_and_run_cmd(self, context: Any, *arguments: Any, **options: Any) -> Any:
        part = self.extra_context["dbt_node_config"]["unique_id"]
        with steps.part_of_build(read_environment(), _build_of(context), part):
            return super().build_and_run_cmd(context, *arguments, **options)  # type: ignore[misc]


class ModelOperator(PartOfBuild, DbtRunLocalOperator):  # type: ignore[misc]
    """Builds a model."""


class SnapshotOperator(PartOfBuild, DbtSnapshotLocalOperator):  # type: ignore[misc]
    """Takes a snapshot."""


OPERATORS = {DbtResourceType.MODEL: ModelOperator, DbtResourceType.SNAPSHOT: SnapshotOperator}


def begin_build(**context: Any) -> None:
    """Open the build of this DAG run: no other dbt command runs on the warehouse until it is closed."""
    steps.begin_build(read_environment(), _build_of(context))


def end_build(**context: Any) -> None:
    """Close the build, whether or not its models were built."""
    steps.end_build(read_environment(), _build_of(context))


def build_by_model(*, after: Any, before: Any) -> None:
    """Add the tasks that build the models to the current DAG, after the tasks `after` and before the task `before`.

    Raises ConfigurationError when the manifest is missing or stale.
    """
    manifest = find_manifest()

    begun = task(execution_timeout=DBT_LIMIT, trigger_rule=AFTER_EITHER_WAY)(begin_build)()
    ended = task(execution_timeout=DBT_LIMIT)(end_build)().as_teardown(setups=begun)
    models = DbtTaskGroup(
        group_id="models",
        project_config=ProjectConfig(dbt_project_path=PROJECT, manifest_path=manifest, install_dbt_deps=False),
        profile_config=ProfileConfig(
            profile_name="tidemark", target_name="warehouse", profiles_yml_filepath=PROJECT / "profiles.yml"
        ),
        execution_config=ExecutionConfig(execution_mode=ExecutionMode.LOCAL, invocation_mode=InvocationMode.DBT_RUNNER),
        render_config=RenderConfig(
            load_method=LoadMode.DBT_MANIFEST,
            test_behavior=TestBehavior.NONE,  # all rules are checked together, after the models
            emit_datasets=False,
            node_converters=dict.fromkeys(OPERATORS, _task_of),
        ),
        operator_args={"execution_timeout": DBT_LIMIT},
    )
    after >> begun >> models >> ended
    # If end_build fails, the run stops: the rules would wait for a build that stays open.
    models >> before
    ended >> before


def _task_of(*, dag: Any, task_group: Any, task_args: Mapping[str, Any], node: Any, task_id: str, **_: Any) -> Any:
    """Return the task of one node, as Cosmos would create it but with the lock."""
    cache_folder = manifest_path().parent  # not Cosmos's default below /tmp, where others can write
    arguments = {**task_args, "cache_dir": cache_folder if os.access(cache_folder, os.W_OK) else None}
    return OPERATORS[node.resource_type](
        task_id=task_id,
        dag=dag,
        task_group=task_group,
        select=f"fqn:{'.'.join(node.fqn)}",
        extra_context={"dbt_node_config": node.context_dict, "package_name": node.package_name},
        **arguments,
    )


def _build_of(context: Mapping[str, Any]) -> Build:
    """Return the build of a DAG run; when its tasks are cleared, the same build is opened again."""
    run = context["dag_run"]
    return Build(name=f"{run.dag_id} {run.run_id}", owner=run.dag_id)
