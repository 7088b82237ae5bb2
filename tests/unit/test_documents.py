"""The README is short, and the documents name each other by paths that exist."""

import re
from pathlib import Path

from tests.end_to_end.celery_cluster import WORKER_NEEDS

CHECKOUT = Path(__file__).parents[2]
MAX_README_WORDS = 600
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


def test_the_readme_shows_the_way_in_600_words_or_fewer():
    words = (CHECKOUT / "README.md").read_text(encoding="utf-8").split()

    assert 100 < len(words) <= MAX_README_WORDS


def test_every_page_that_a_document_names_exists():
    folders = [CHECKOUT / "docs", CHECKOUT / ".github"]
    documents = [CHECKOUT / "README.md", CHECKOUT / "dbt" / "README.md"]
    documents += [path for folder in folders for path in folder.rglob("*.md")]
    links = [(path, link) for path in documents for link in LINK.findall(path.read_text(encoding="utf-8"))]
    broken = [f"{path.relative_to(CHECKOUT)}: {link}" for path, link in links if not (path.parent / link).exists()]

    assert len(links) > 10
    assert broken == []


def test_documented_worker_settings_match_those_tested():
    page = (CHECKOUT / "docs" / "scaling.md").read_text(encoding="utf-8")

    assert re.findall(r"^\| `(AIRFLOW_\w+)` \|", page, re.MULTILINE) == list(WORKER_NEEDS)
