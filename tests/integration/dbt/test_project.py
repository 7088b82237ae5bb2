"""What every model of the project keeps to, told from what dbt makes of it and from the relations that it built."""

import re
import statistics
from dataclasses import dataclass

import pytest

from tests.integration.dbt.built_shop import CHECKOUT, WITHOUT_TESTS, Shop, open_shop

STRICT = ("--warn-error", "--show-all-deprecations")
MAX_MEDIAN_LINES = 60
LAYERS = {"source": 0, "snapshots": 1, "staging": 1, "intermediate": 2, "marts": 3}
NAMES = {
    "staging": r"stg_\w+",
    "intermediate": r"int_\w+_\w+",
    "marts": r"(dim|fct)_\w+|(?!stg_|int_|snap_)[a-z]+_[a-z]+",
    "snapshots": r"snap_\w+",
}
KEY_TESTS = {"unique", "is_unique_together", "has_no_gap_or_overlap"}
RULES = {"is_true", "refers_to", "is_not_in_the_future", "has_usual_volume", "has_no_gap_or_overlap"}
CLOCKS = re.compile(
    r"\b(now|clock_timestamp|statement_timestamp|transaction_timestamp|timeofday)\s*\("
    r"|\b(current_timestamp|current_date|current_time|localtime|localtimestamp)\b|'(now|today|yesterday|tomorrow)'",
    re.IGNORECASE,
)
ARITHMETIC = re.compile(r"(?<!select) [-+*/] [\w(]|\b(sum|avg|count|row_number|min|max)\(", re.IGNORECASE)
WITHOUT_UNIT_TEST = {
    "dim_customers_history": "columns of int_customers_history by name, and whether the version is open",
    "dim_dates": "its least output is a year of 365 rows; test_dates.py compares each with Python",
    "int_inventory_history": "versions_of is tested on int_products_history, what can be sold on stg_inventory_levels",
}


@dataclass(frozen=True)
class Project:
    shop: Shop
    builds: list
    manifest: dict

    @property
    def nodes(self):
        return self.manifest["nodes"]

    def models(self):
        found = {node["name"]: node for node in self.nodes.values() if node["resource_type"] in ("model", "snapshot")}
        assert len(found) > 20
        return found

    def data_tests(self):
        found = [node for node in self.nodes.values() if node["resource_type"] == "test"]
        assert len(found) > 150
        return found


@pytest.fixture(scope="module")
def project(source_server, target_server, tmp_path_factory):
    """The project, built twice: the second build is incremental, and has all tests."""
    with open_shop(source_server, target_server, tmp_path_factory.mktemp("project")) as shop:
        shop.succeed("extract")
        builds = [shop.dbt("build", *STRICT, **WITHOUT_TESTS), shop.dbt("build", *STRICT)]
        assert builds[1].returncode == 0, builds[1].stdout[-4000:]
        yield Project(shop, builds, shop.read_json("manifest.json"))


def layer(node):
    return "snapshots" if node["resource_type"] == "snapshot" else node["fqn"][1]


def test_builds_give_no_warning_and_no_deprecation(project):
    for build in project.builds:
        assert "WARN=0 ERROR=0 SKIP=0" in build.stdout
        assert not re.search(r"\[WARNING\]|deprecat", build.stdout, re.IGNORECASE)


def test_every_model_documents_its_grain(project):
    untold = {name for name, node in project.models().items() if not node["description"].startswith("One row per ")}

    assert untold == set()


def test_described_columns_are_exactly_those_built(project):
    built = {
        (schema, table, column)
        for schema, table, column in project.shop.query(
            "select table_schema, table_name, column_name from information_schema.columns "
            "where table_schema in ('staging', 'intermediate', 'snapshots', 'marts') and table_name <> 'dbt_builds'"
        )
    }
    described = {
        (node["schema"], name, column)
        for name, node in project.models().items()
        for column, properties in node["columns"].items()
        if properties["description"]
    }

    assert len(built) > 200
    assert built == described


def test_every_mart_has_an_enforced_contract(project):
    marts = [node for node in project.models().values() if layer(node) == "marts"]

    assert len(marts) > 8
    assert [node["name"] for node in marts if not node["config"]["contract"]["enforced"]] == []


def test_every_model_has_a_test_of_its_key(project):
    tested = {
        project.nodes[node["attached_node"]]["name"]
        for node in project.data_tests()
        if (node.get("test_metadata") or {}).get("name") in KEY_TESTS and node["attached_node"] in project.nodes
    }

    assert set(project.models()) - tested == set()


def test_every_mart_and_calculating_model_has_a_unit_test(project):
    tested = {test["model"] for test in project.manifest["unit_tests"].values()}
    needing = {
        name
        for name, node in project.models().items()
        if layer(node) == "marts" or (node["resource_type"] == "model" and ARITHMETIC.search(node["raw_code"]))
    }

    assert {"fct_orders", "int_order_items_enriched", "stg_inventory_levels"} <= needing
    assert needing - tested == set(WITHOUT_UNIT_TEST)


def test_source_freshness_is_read_from_the_ledger(project):
    told = {
        source["name"]: source["freshness"]
        for source in project.manifest["sources"].values()
        if source["loaded_at_field"]
    }

    assert set(told) == {"runs"}
    assert told["runs"]["warn_after"]["count"]
    assert told["runs"]["error_after"]["count"]


def test_a_staging_model_reads_one_source_and_joins_nothing(project):
    staging = [node for node in project.models().values() if layer(node) == "staging"]

    assert len(staging) == 11
    for node in staging:
        schema, table = ("etl", "stg_etl_") if node["name"].startswith("stg_etl_") else ("raw", "stg_")
        assert node["depends_on"]["nodes"] == [f"source.tidemark.{schema}.{node['name'].removeprefix(table)}"]
        assert not re.search(r"\bjoin\b|\bfrom\s+\w+\s*,", node["raw_code"], re.IGNORECASE)


def test_models_read_only_their_own_and_lower_layers(project):
    wrong = []
    for name, node in project.models().items():
        for parent in node["depends_on"]["nodes"]:
            if parent.startswith("source."):
                is_allowed = parent.startswith("source.tidemark.etl.") or LAYERS[layer(node)] == 1
            else:
                is_allowed = LAYERS[layer(project.nodes[parent])] <= LAYERS[layer(node)] and not (
                    node["resource_type"] == "snapshot" or layer(node) == "staging"
                )
            if not is_allowed:
                wrong.append((name, parent))

    assert wrong == []


def test_half_of_the_models_are_short(project):
    lines = [
        len((CHECKOUT / "dbt" / node["original_file_path"]).read_text().splitlines())
        for node in project.models().values()
        if node["resource_type"] == "model"
    ]

    assert statistics.median(lines) < MAX_MEDIAN_LINES


def test_names_show_the_layer(project):
    wrong = [name for name, node in project.models().items() if not re.fullmatch(NAMES[layer(node)], name)]

    assert wrong == []


def test_models_read_the_clock_only_for_their_build_time(project):
    def is_clock_read(code):
        return CLOCKS.search(code.replace("now() as dbt_built_at", ""))

    compiled = {name: node for name, node in project.models().items() if node.get("compiled_code")}
    reading = {
        name
        for name, node in compiled.items()
        if is_clock_read(node["compiled_code"]) or is_clock_read(node["raw_code"])
    }

    assert len(compiled) > 20
    assert reading == set()


def test_failing_rows_are_stored_in_audit_up_to_a_limit(project):
    for node in project.data_tests():
        assert node["schema"] == "audit"
        assert node["config"]["store_failures"]
        assert node["config"]["limit"] <= 1000


def test_every_custom_rule_explains_its_severity(project):
    words = {"error": "an error because ", "warn": "a warning because "}
    rules = [
        node for node in project.data_tests() if not node.get("test_metadata") or node["test_metadata"]["name"] in RULES
    ]

    assert len(rules) > 30
    assert [
        node["name"] for node in rules if words[node["config"]["severity"].lower()] not in node["description"]
    ] == []
