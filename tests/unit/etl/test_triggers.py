"""Which triggers are taken for one that stamps a column at each update, and which only perhaps."""

import pytest

from etl.policy.triggers import Setter, Trigger, find_setter


def make(body, name="touch", **changes):
    given = {"has_condition": False, "has_columns": False, "language": "plpgsql", "function": "touch_it"}
    return Trigger(name=name, body=body, **{**given, **changes})


@pytest.mark.parametrize(
    "body",
    [
        "begin new.updated_at := now(); return new; end",
        "BEGIN\n  NEW.updated_at = CURRENT_TIMESTAMP;\n  RETURN NEW;\nEND",
        "begin new.\"updated_at\" := clock_timestamp() at time zone 'UTC'; return new; end",
        "begin /* if nobody objects */ new.updated_at := transaction_timestamp(); -- for now\n return new; end",
        "begin new.version := old.version + 1; new.updated_at := now(); return new; end",
    ],
)
def test_plain_assignment_of_the_current_time_sets_the_column(body):
    assert find_setter("updated_at", [make(body)]) == Setter(name="touch")


@pytest.mark.parametrize(
    ("doubt", "body", "changes"),
    [
        ("it has a condition", "new.updated_at := now();", {"has_condition": True}),
        ("only when certain columns are updated", "new.updated_at := now();", {"has_columns": True}),
        ("has branches", "if new.note <> old.note then new.updated_at := now(); end if;", {}),
        ("has branches", "begin new.updated_at := now(); exception when others then return new; end", {}),
        ("something else than the current time", "new.updated_at := old.updated_at;", {}),
        ("something else", "new.updated_at := now(); new.updated_at := coalesce(new.seen_at, old.seen_at);", {}),
        ("is not in PL/pgSQL", "", {"language": "plperl", "arguments": ("updated_at",)}),
        ("is given the name of the column", "perform 1;", {"arguments": ("updated_at",)}),
    ],
)
def test_doubt_about_a_trigger_says_what_it_is(doubt, body, changes):
    found = find_setter("updated_at", [make(body, **changes)])

    assert found is not None
    assert doubt in found.doubt


@pytest.mark.parametrize(
    "body",
    [
        "begin return new; end",
        "begin -- new.updated_at := now();\n return new; end",
        "begin new.not_updated_at := now(); renew.updated_at := now(); return new; end",
        "begin new.updated_at_2 := now(); return new; end",
    ],
)
def test_trigger_that_sets_another_column_is_none(body):
    assert find_setter("updated_at", [make(body)]) is None


def test_name_of_a_column_is_no_pattern():
    assert find_setter("updated.at", [make("new.updated_at := now();")]) is None
    assert find_setter("price (eur", [make('new."price (eur" := now();')]) == Setter(name="touch")


def test_trigger_without_a_doubt_comes_first():
    doubtful = make("if true then new.updated_at := now(); end if;", name="a")

    assert find_setter("updated_at", [doubtful, make("new.updated_at := now();", name="b")]) == Setter(name="b")


def test_known_function_in_c_sets_the_column_that_it_is_given():
    known = {"language": "c", "function": "moddatetime"}

    assert find_setter("updated_at", [make("moddatetime", arguments=("updated_at",), **known)]) == Setter(name="touch")
    assert find_setter("created_at", [make("moddatetime", arguments=("updated_at",), **known)]) is None
