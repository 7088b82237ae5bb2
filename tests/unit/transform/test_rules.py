"""Results of dbt become lines that say what to do."""

from types import SimpleNamespace

import pytest

from etl.transform import rules

CHAIN = """Compilation Error in model fct_events (models/marts/facts/fct_events.sql)
  This model has an enforced contract that failed.

  > in macro assert_columns_equivalent (macros/relations/column/columns_spec_ddl.sql)
  > called by macro create_table_as (macros/relations/table/create.sql)
  > called by model fct_events (models/marts/facts/fct_events.sql)

  compiled code at target/compiled/tidemark/models/marts/facts/fct_events.sql
"""


def result(name="r", status="fail", kind="test", failures=None, message="", description="", limit=1000):
    node = SimpleNamespace(
        name=name,
        alias=name,
        schema="audit",
        resource_type=kind,
        description=description,
        original_file_path=f"models/{name}.yml",
        config=SimpleNamespace(limit=limit),
    )
    return SimpleNamespace(node=node, status=status, failures=failures, message=message)


@pytest.mark.parametrize(
    ("failures", "counted"), [(1, "1 row breaks it"), (3, "3 rows break it"), (1000, "1,000 rows or more break it")]
)
def test_broken_rule_shows_rows_description_and_query(failures, counted):
    lines = rules.describe_failures([result("totals", failures=failures, description="They add up.")])

    assert lines == [f"rule totals: {counted} (They add up.); see them: select * from audit.totals"]


def test_macro_chain_is_removed_from_the_message():
    lines = rules.describe_failures([result("fct_events", "error", "model", message=CHAIN)])

    assert lines == [
        "fct_events: Compilation Error in model fct_events (models/marts/facts/fct_events.sql) "
        "This model has an enforced contract that failed.; see models/fct_events.yml in dbt/"
    ]


def test_a_rule_whose_query_failed_is_not_a_broken_rule():
    failed = result("totals", "error", message="Database Error\n  column x does not exist")

    assert not rules.has_rows_to_see([failed])
    assert rules.describe_failures([failed]) == [
        "totals: Database Error column x does not exist; see models/totals.yml in dbt/"
    ]


def test_unbuilt_models_are_named_and_unchecked_rules_are_not():
    lines = rules.describe_failures(
        [
            result("totals", failures=1),
            result("fct_b", "skipped", "model"),
            result("fct_a", "skipped", "model"),
            result("not_null_fct_a", "skipped"),
        ]
    )

    assert lines[1:] == ["not built, because they read what failed: fct_a, fct_b"]


def test_a_warning_is_no_failure():
    warned = [result("volume", "warn", failures=2), result("fct_a", "success", "model")]

    assert rules.describe_failures(warned) == []
    assert rules.describe_warnings(warned) == [
        "warning: rule volume: 2 rows break it; see them: select * from audit.volume"
    ]


@pytest.mark.parametrize(
    ("results", "is_alone"),
    [
        ([result(status="fail", failures=2), result(status="pass")], True),
        ([result(status="fail", kind="unit_test")], True),
        ([result(status="fail", failures=2), result(status="error")], False),
        ([result(status="error", kind="model")], False),
        ([result(status="warn", failures=1)], False),
        ([], False),
    ],
)
def test_retry_is_useless_when_only_rows_break_rules(results, is_alone):
    assert rules.is_broken_by_rows_alone(results) is is_alone
