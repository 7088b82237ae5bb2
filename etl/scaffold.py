"""Writes dbt sources and staging models for replicated tables, in the style of the project's own.

Begin at `write_staging`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from etl.discover import PLAIN_NAME, Proposal
from etl.errors import ConfigurationError

META_DESCRIPTIONS = {
    "_etl_run_id": "The run that wrote the row last; incremental models pick what changed by it.",
    "is_deleted": "Whether the row is gone from the source.",
}


def write_staging(folder: Path, proposals: Sequence[Proposal]) -> list[Path]:
    """Write `_sources.yml`, `_staging.yml` and a model for each table; return the files.

    Raises ConfigurationError, with nothing written, when one of them is there already.
    """
    tables = [proposal for proposal in proposals if not proposal.skipped]
    files = {f"stg_{_file_name(table.name)}.sql": _model(table) for table in tables}
    files["_sources.yml"] = _dump({"version": 2, "sources": [_sources(tables)]})
    files["_staging.yml"] = _dump({"version": 2, "models": [_describe(table) for table in tables]})
    taken = sorted(name for name in files if (folder / name).exists())
    if taken:
        raise ConfigurationError(
            f"expected a folder without these files, found {', '.join(taken)} in {folder}: name another folder, or "
            "remove them"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in sorted(files)]


def _model(table: Proposal) -> str:
    columns = [f"        source.{_quoted(name)}," for name, _ in table.columns]
    return "\n".join(
        [
            "with",
            "",
            "source as (",
            f"    select * from {{{{ source('raw', '{table.name}') }}}}",
            "),",
            "",
            "renamed as (",
            "    select",
            *columns,
            "        source._etl_run_id,",
            "        source._etl_deleted_at is not null as is_deleted",
            "    from source",
            ")",
            "",
            "select * from renamed",
            "",
        ]
    )


def _sources(tables: Sequence[Proposal]) -> dict[str, Any]:
    return {
        "name": "raw",
        "description": "The tables of the source, row for row, as the last run read them.",
        "schema": "raw",
        "tables": [
            {
                "name": table.name,
                **({} if PLAIN_NAME.fullmatch(table.name) else {"quoting": {"identifier": True}}),
                "description": _sentence(table.comment or f"One row per row of {table.name}")
                + " Rows gone from the source keep `_etl_deleted_at`.",
            }
            for table in tables
        ],
    }


def _describe(table: Proposal) -> dict[str, Any]:
    columns: list[dict[str, Any]] = []
    for name, comment in table.columns:
        column: dict[str, Any] = {"name": name, "description": _sentence(comment or f"{name}, as the source has it")}
        if not PLAIN_NAME.fullmatch(name):
            column["quote"] = True
        if table.key == (name,):
            column["data_tests"] = ["unique", "not_null"]
        elif name in table.key:
            column["data_tests"] = ["not_null"]
        columns.append(column)
    columns += [{"name": name, "description": text} for name, text in META_DESCRIPTIONS.items()]
    return {
        "name": f"stg_{_file_name(table.name)}",
        "description": _sentence(table.comment or f"One row per row of {table.name}"),
        "columns": columns,
    }


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _quoted(name: str) -> str:
    return name if PLAIN_NAME.fullmatch(name) else '"{}"'.format(name.replace('"', '""'))


def _file_name(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower())


def _dump(document: Any) -> str:
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110))
