"""Writes what `discover` proposes: a tables.yml with the reasons, and dbt sources and staging models.

The models follow the style of this project. Begin at `render_tables` or `write_staging`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from etl.commands.discover import Proposal
from etl.commands.remedies import list_statements
from etl.config import Settings
from etl.errors import ConfigurationError
from etl.model import ROW_VERSIONS
from etl.postgres.sql import PLAIN_NAME, quote_name
from etl.text import escape_in_quotes, printable

YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
UNITS = ("bytes", "kB", "MB", "GB", "TB")
UNIT = 1024
# dbt renders every text in its files as a template, and quotes names without doubling the quotes in them.
NOT_FOR_DBT = re.compile(r"[\"{}]")
RUN_DESCRIPTION = "The run that last wrote the row; incremental models use it to select changed rows."


def render_tables(proposals: Sequence[Proposal], settings: Settings) -> str:
    """Return the text of a tables.yml, with the reasons as comments."""
    lines = [
        f"# Proposed by `etl discover` for {printable(settings.source_url.address)}.",
        "# Read the reasons, change what you know better, save this as a file, and set ETL_TABLES to its path.",
        f"schema: {_scalar(settings.tables.schema)}",
        "discover: true  # tables that are created later are replicated too",
        "tables:",
    ]
    for proposal in proposals:
        lines += ["", *_render_table(proposal)]
    statements = list_statements(proposal.remedies for proposal in proposals)
    if statements:
        lines += ["", "# All statements for the source, to be read and run from top to bottom:", "#"]
        lines += [f"# {printable(statement)};" for statement in statements]
    return "\n".join(lines) + "\n"


def _render_table(proposal: Proposal) -> list[str]:
    key = f"; key ({', '.join(proposal.key)})" if proposal.key else ""
    about = [f"about {proposal.rows:,} rows, {_size(proposal.bytes)}{key}"]
    about += [f"left out: {proposal.skipped}"] if proposal.skipped else ["; ".join(proposal.reasons)]
    about += [f"{fault}: see the end" for fault in dict.fromkeys(fault for fault, _ in proposal.remedies)]
    lines = [f"  # {printable(line)}" for line in about] + [f"  {_scalar(proposal.name)}:"]
    if proposal.skipped:
        return [*lines, "    skip: true"]
    if proposal.is_key_unique_index:
        lines.append(f"    key: [{', '.join(map(_scalar, proposal.key))}]  # of a unique index")
    lines.append(f"    watermark: {_scalar(proposal.watermark) if proposal.watermark else ROW_VERSIONS}")
    if proposal.time_zone:
        lines.append(f"    time_zone: {_scalar(proposal.time_zone)}  # the source's; change it if writers set another")
    return [*lines, "    deletes: reconcile"]


def _scalar(text: str) -> str:
    is_plain = PLAIN_NAME.fullmatch(text) is not None and text not in YAML_WORDS
    return text if is_plain else _in_quotes(text)


def _in_quotes(text: str) -> str:
    return escape_in_quotes(json.dumps(text, ensure_ascii=False))


def _size(count: int) -> str:
    size, unit = float(count), 0
    while size >= UNIT and unit < len(UNITS) - 1:
        size, unit = size / UNIT, unit + 1
    return f"{size:.0f} {UNITS[unit]}"


def write_staging(folder: Path, proposals: Sequence[Proposal]) -> list[Path]:
    """Write `_sources.yml`, `_staging.yml` and a model for each table that dbt can name; return the files.

    Raises ConfigurationError, with nothing written, when one of them already exists.
    """
    tables = [proposal for proposal in proposals if not proposal.skipped and not is_beyond_dbt(proposal.name)]
    names = _model_names(tables)
    files = {f"{names[table.name]}.sql": _model(table) for table in tables}
    files["_sources.yml"] = _dump({"version": 2, "sources": [_sources(tables)]})
    files["_staging.yml"] = _dump({"version": 2, "models": [_describe(table, names[table.name]) for table in tables]})
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


def is_beyond_dbt(name: str) -> bool:
    """Return whether dbt would render a name as a template, or end the quoted name early and run the rest as SQL."""
    return NOT_FOR_DBT.search(name) is not None


def _model(table: Proposal) -> str:
    columns = [f"        source.{_quoted(name)}," for name, _ in table.columns]
    return "\n".join(
        [
            "with",
            "",
            "source as (",
            f"    select * from {{{{ source('raw', {_jinja(table.name)}) }}}}",
            "),",
            "",
            "renamed as (",
            "    select",
            *columns,
            "        source._etl_run_id,",
            f"        source._etl_deleted_at is not null as {_flag_name(table)}",
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
        "description": "The tables of the source, row for row, as of the last run.",
        "schema": "raw",
        "tables": [
            {
                "name": table.name,
                **({} if PLAIN_NAME.fullmatch(table.name) else {"quoting": {"identifier": True}}),
                "description": _sentence(table.comment or f"One row per row of {table.name}")
                + " Rows deleted on the source have `_etl_deleted_at` set.",
            }
            for table in tables
        ],
    }


def _describe(table: Proposal, model_name: str) -> dict[str, Any]:
    columns: list[dict[str, Any]] = []
    for name, comment in table.columns:
        if is_beyond_dbt(name):  # the model has it as a Jinja string, which YAML cannot express
            continue
        column: dict[str, Any] = {"name": name, "description": _sentence(comment or f"{name}, as the source has it")}
        if not PLAIN_NAME.fullmatch(name):
            column["quote"] = True
        if table.key == (name,):
            column["data_tests"] = ["unique", "not_null"]
        elif name in table.key:
            column["data_tests"] = ["not_null"]
        columns.append(column)
    columns += [
        {"name": "_etl_run_id", "description": RUN_DESCRIPTION},
        {"name": _flag_name(table), "description": "Whether the row was deleted on the source."},
    ]
    return {
        "name": model_name,
        "description": _sentence(table.comment or f"One row per row of {table.name}"),
        "columns": columns,
    }


def _sentence(text: str) -> str:
    """Return a description as a sentence; spaces separate braces that dbt would render as a template."""
    text = re.sub(r"\{(?=[{%#])", "{ ", text)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _quoted(name: str) -> str:
    """Return a column name for a model; if it is not plain, as a Jinja string, so that dbt does not render it."""
    return name if PLAIN_NAME.fullmatch(name) else f"{{{{ {_jinja(quote_name(name))} }}}}"


def _jinja(name: str) -> str:
    """Return a name as a Jinja string literal, which may be written like one of Python."""
    return f"'{name}'" if PLAIN_NAME.fullmatch(name) else _in_quotes(name)


def _flag_name(table: Proposal) -> str:
    return "_is_deleted" if "is_deleted" in dict(table.columns) else "is_deleted"


def _model_names(tables: Sequence[Proposal]) -> dict[str, str]:
    """Return the model name of each table; names that differ only in case or punctuation get a number."""
    names: dict[str, str] = {}
    for table in tables:
        plain = name = "stg_" + re.sub(r"\W+", "_", table.name.lower())
        number = 1
        while name in names.values():
            number += 1
            name = f"{plain}_{number}"
        names[table.name] = name
    return names


def _dump(document: Any) -> str:
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110))
