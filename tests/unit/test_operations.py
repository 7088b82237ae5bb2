"""docs/operations.md quotes messages and figures: each is one that the sources say, and no error is left out.

`...` in a quote stands for what varies, as do the braces of an f-string in the sources.
"""

import ast
import re
from pathlib import Path

from etl.postgres.error_translation import HINTS

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "operations.md").read_text(encoding="utf-8")
RUNBOOK = PAGE[PAGE.index("\n## When something stops\n") : PAGE.index("\n## Sizing\n")]
SIZING = PAGE[PAGE.index("\n## Sizing\n") :]
PATHS = [path for folder in ("etl", "deploy") for path in sorted((CHECKOUT / folder).rglob("*.py"))]
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PATHS}
ELSEWHERE = CHECKOUT / "deploy"  # its messages are in docs/local.md
FEWEST_WORDS = 2  # of an error's own: others pass on what another one says


def quotes():
    """Return the messages in the first columns of the runbook's tables."""
    cells = [line.split("|")[1] for line in RUNBOOK.splitlines() if line.startswith("| `")]
    return [quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell)]


def text_of(node):
    """Return a string of the sources with `...` for what varies, and None of anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
    return None


def strings_in(tree):
    """Return the strings of a tree, f-strings whole, then what is inside them; no docstrings and no keys."""
    if isinstance(tree, ast.Subscript) or (isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Constant)):
        return []
    text = text_of(tree)
    if text is None:
        return [found for child in ast.iter_child_nodes(tree) for found in strings_in(child)]
    inside = [part.value for part in getattr(tree, "values", []) if isinstance(part, ast.FormattedValue)]
    return [text, *(found for part in inside for found in strings_in(part))]


def error_names():
    """Return EtlError and the classes below it."""
    classes = [node for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names, found = {"EtlError"}, 0
    while len(names) > found:
        found = len(names)
        names |= {each.name for each in classes if names & {ast.unparse(base) for base in each.bases}}
    return names


def errors_said():
    """Return the texts that errors are made with, by their place."""
    names = error_names()
    return {
        f"{path.relative_to(CHECKOUT)}:{node.lineno}: {text}": text
        for path, tree in SOURCES.items()
        if not path.is_relative_to(ELSEWHERE)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names and node.args
        for text in strings_in(node.args[0])[:1]
        if len(re.findall(r"[a-z]{2,}", text)) >= FEWEST_WORDS
    }


def is_in(quote, text):
    return re.search(".*".join(map(re.escape, quote.split("..."))), text, re.DOTALL) is not None


def test_every_runbook_message_occurs_in_the_sources():
    said = [text for tree in SOURCES.values() for text in strings_in(tree)]
    unsaid = [quote for quote in quotes() if not any(is_in(quote, text) for text in said)]

    assert len(quotes()) > 60
    assert unsaid == []


def test_every_error_is_in_the_runbook():
    said = errors_said()
    missing = [place for place, text in said.items() if not any(is_in(quote, text) for quote in quotes())]

    assert len(said) > 40
    assert missing == []


def test_every_sqlstate_with_a_hint_is_in_the_runbook():
    assert [state for state in HINTS if f"\n| {state} |" not in RUNBOOK] == []


def test_every_figure_for_sizing_was_measured():
    measured = (CHECKOUT / "docs" / "performance.md").read_text(encoding="utf-8")
    figures = re.findall(r"`(\d[\d.,]*)`", SIZING)
    invented = [figure for figure in figures if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d.,])", measured)]

    assert len(figures) > 8
    assert invented == []
