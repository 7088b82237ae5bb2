"""Writes what `discover` proposes: a tables.yml with the reasons, and dbt sources and staging models.

The models follow the style of this project. Begin at `render_tables` or `write_staging`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
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
# Names of columns that often hold what should not leave the source, as parts of words.
SECRETS = re.compile(r"passw|secret|token|api[_ ]?key|private[_ ]?key|salt$|(^|_)otp|cvv", re.IGNORECASE)
PERSONAL = re.compile(
    r"e_?mail|phone|mobile|(first|last|full|middle|sur|maiden)[_ ]?name|birth|^dob$|^ssn$|social_?sec|passport|iban|"
    r"(card|account)_?n(o|um)|street|address|zip|postal|^ip$|ip_addr|latitude|longitude",
    re.IGNORECASE,
)
RUN_DESCRIPTION = "The run that last wrote the row; incremental models use it to select changed rows."


def render_tables(proposals: Sequence[Proposal], settings: Settings, *, is_detailed: bool = True) -> str:
    """Return the text of a tables.yml, with a summary and the reasons as comments.

    Unless it `is_detailed`, tables that are proposed for the same reasons share one comment and take a line each.
    """
    statements = list_statements(proposal.remedies for proposal in proposals)
    lines = [
        f"# Proposed by `etl discover` for {printable(settings.source_url.address)}.",
        "# Read the reasons, change what you know better, save this as a file, and set ETL_TABLES to its path.",
        "#",
        *(f"# {printable(line)}" for line in _summarize(proposals, len(statements))),
        f"schema: {_scalar(settings.tables.schema)}",
        "discover: true  # tables that are created later are replicated too",
        "tables:",
    ]
    if is_detailed:
        for proposal in proposals:
            lines += ["", *_render_table(proposal)]
    else:
        lines += _render_groups(proposals)
    if statements:
        lines += ["", "# All statements for the source, to be read and run from top to bottom:", "#"]
        lines += [f"# {printable(statement)};" for statement in statements]
    return "\n".join(lines) + "\n"


def _summarize(proposals: Sequence[Proposal], statements: int) -> list[str]:
    """Count the tables by how they would be read, and by what somebody has to do first."""
    replicated = [proposal for proposal in proposals if not proposal.skipped]
    size = f"about {sum(one.rows for one in replicated):,} rows, {_size(sum(one.bytes for one in replicated))}"
    lines = [f"{len(replicated):,} of {len(proposals):,} relations would be replicated, {size}:"]
    counts = Counter(proposal.watermark or f"their row versions ({ROW_VERSIONS})" for proposal in replicated)
    lines += [f"{count:7,} by {watermark}" for watermark, count in counts.most_common()]
    left_out = Counter(proposal.skipped for proposal in proposals if proposal.skipped)
    lines += [f"{count:7,} left out: {reason}" for reason, count in left_out.most_common()]
    personal = sum(bool(_propose_masks(proposal)) for proposal in proposals)
    if personal:
        lines.append(f"To decide: {_count(personal, 'table')} with columns that may hold personal data or secrets")
    faults = Counter(fault for proposal in proposals for fault in {fault for fault, _ in proposal.remedies})
    if faults:
        lines.append(f"To mend on the source, by the script at the end ({_count(statements, 'statement')}):")
        lines += [f"{count:7,} {fault}" for fault, count in faults.most_common()]
    return lines


def _render_groups(proposals: Sequence[Proposal]) -> list[str]:
    groups: dict[tuple[str, ...], list[Proposal]] = {}
    for proposal in proposals:
        groups.setdefault((*_explain(proposal), *_settings(proposal)), []).append(proposal)
    lines = []
    for alike in groups.values():
        about = [_count(len(alike), "table"), *_explain(alike[0])]
        lines += ["", *(f"  # {printable(line)}" for line in about)]
        lines += [f"  {_scalar(one.name)}: {{{', '.join(_settings(one))}}}" for one in alike]
    return lines


def _render_table(proposal: Proposal) -> list[str]:
    key = f"; key ({', '.join(proposal.key)})" if proposal.key else ""
    about = [f"about {proposal.rows:,} rows, {_size(proposal.bytes)}{key}", *_explain(proposal)]
    return [
        *(f"  # {printable(line)}" for line in about),
        f"  {_scalar(proposal.name)}:",
        *(f"    {entry}" for entry in _settings(proposal)),
    ]


def _explain(proposal: Proposal) -> list[str]:
    """Say why a table is read as proposed, or left out, and what is to be mended."""
    about = [f"left out: {proposal.skipped}"] if proposal.skipped else ["; ".join(proposal.reasons)]
    if proposal.time_zone:
        about.append("the zone is that of the source: change it if writers set another")
    masks = _propose_masks(proposal)
    if masks:
        about.append(f"may hold personal data or secrets: columns: {{{', '.join(masks)}}} keeps them on the source")
    if proposal.is_key_unique_index and not proposal.skipped:
        about.append("without a primary key: its key is that of a unique index")
    return about + [f"{fault}: see the end" for fault in dict.fromkeys(fault for fault, _ in proposal.remedies)]


def _propose_masks(proposal: Proposal) -> list[str]:
    """Return entries of `columns` for columns that by their names should not leave the source as they are."""
    names = [name for name, _ in proposal.columns if name not in (*proposal.key, proposal.watermark)]
    kinds = {name: "exclude" if SECRETS.search(name) else "hash" if PERSONAL.search(name) else "" for name in names}
    return [f"{_scalar(name)}: {kind}" for name, kind in kinds.items() if kind]


def _settings(proposal: Proposal) -> list[str]:
    """Return the entries of a table in tables.yml."""
    if proposal.skipped:
        return ["skip: true"]
    entries = [f"watermark: {_scalar(proposal.watermark) if proposal.watermark else ROW_VERSIONS}"]
    if proposal.is_key_unique_index:
        entries.append(f"key: [{', '.join(map(_scalar, proposal.key))}]")
    if proposal.time_zone:
        entries.append(f"time_zone: {_scalar(proposal.time_zone)}")
    return [*entries, "deletes: reconcile"]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
