"""The tables and the picture that are made of figures."""

import sys
from xml.etree import ElementTree

import pytest

from bench import figures, picture, report
from bench.figures import Figures, Sample


def sample(contender, seconds, task="full load", **others):
    return Sample(task=task, contender=contender, turn=0, seconds=seconds, **others)


def taken(*samples, rows=1000):
    return Figures(rows=rows, repeat=1, machine={"processors": 2}, samples=samples)


def test_the_command_prints_a_markdown_table_of_a_file(tmp_path, monkeypatch, capsys):
    figures.write(taken(sample("tidemark", 3.0), sample("psql binary", 2.0)), tmp_path / "a.json")
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "a.json")])

    assert report.main() == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1,000 orders, 1 turns; processors: 2."
    assert "| full load | 3.00 (3.00-3.00) | 2.00 (2.00-2.00) | 1.50 |  |" in lines


def test_wrong_contender_is_shown_as_wrong_without_a_ratio():
    found = taken(sample("tidemark", 3.0, fault="orders: expected 2 rows, found 1"), sample("psql binary", 2.0))

    (table,) = report.tables(found)

    assert table.rows == (("full load", "wrong", "2.00 (2.00-2.00)", "", ""),)
    assert report.list_faults(found.samples) == [
        "full load, turn 1: tidemark is wrong: orders: expected 2 rows, found 1"
    ]


def test_source_load_is_shown_relative_to_pgbench_alone():
    found = taken(
        sample("tidemark", 4.0, report.BESIDE, source_transactions_per_second=750.0),
        sample(report.ALONE, 10.0, report.BESIDE, source_transactions_per_second=1000.0),
    )

    (table,) = report.tables(found)

    assert table.rows == (("none", "1,000", "1.00", ""), ("tidemark", "750", "0.75", "4.00 (4.00-4.00)"))


def test_plain_query_is_the_baseline_where_there_is_one():
    found = taken(
        sample("tidemark", 3.0, "verify"),
        sample("plain query", 2.0, "verify"),
        sample("tidemark", 6.0, "deleted"),
        sample("plain query", 2.0, "deleted"),
        sample("psql binary", 3.0, "deleted"),
        sample("tidemark", 1.0, "pipeline"),
    )

    seconds, comparing = report.tables(found)

    assert [(row[0], row[-2]) for row in seconds.rows] == [("deleted", "2.00"), ("pipeline", "")]
    assert [(row[0], row[-1]) for row in comparing.rows] == [("verify", "1.50"), ("deleted", "3.00")]


def test_tables_replace_those_between_the_marks():
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"

    assert report.replace_between_marks(page, "new") == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"


def test_page_without_marks_is_rejected():
    with pytest.raises(ValueError, match="expected the marks"):
        report.replace_between_marks("no marks", "new")


def test_picture_has_a_line_per_contender_in_order_of_size():
    found = [
        taken(sample("tidemark", 10.0), sample("psql binary", 1.0), rows=100_000),
        taken(sample("tidemark", 1.0), sample("psql binary", 0.1), rows=1000),
    ]

    drawn = ElementTree.fromstring(picture.draw(found))

    lines = drawn.findall("{*}polyline")
    places = [tuple(map(float, point.split(","))) for point in lines[0].attrib["points"].split()]
    assert len(lines) == 2
    assert places == [(60.0, 170.0), (360.0, 40.0)]
    assert {"rows of orders", "seconds", "full load", "tidemark"} <= {text.text for text in drawn.iter() if text.text}


def test_empty_picture_is_rejected():
    with pytest.raises(ValueError, match="expected figures of one of these tasks"):
        picture.draw([taken(sample("tidemark", 1.0, "verify"))])
