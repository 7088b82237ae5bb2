"""A module imports lower floors only."""

import ast
from pathlib import Path

import etl

FLOORS = [
    {"errors", "model"},
    {
        "config",
        "database_url",
        "statements",
        "raw_statements",
        "key_buckets",
        "catalog_sql",
        "fence",
        "delete_gate",
        "schema_changes",
        "column_types",
        "table_order",
        "tls",
    },
    {"postgres", "copy_pipe", "throttle", "catalog", "foreign_keys", "table_files", "activity", "views", "rejects"},
    {"reader", "ledger", "locks", "raw_tables", "vacuum"},
    {"source", "state"},
    {"batch", "target", "raw_load"},
    {"exchange", "difference", "status", "discover"},
    {"progress_checks", "first_load", "increment", "scaffold"},
    {"reconcile"},
    {"verify", "replicate"},
    {"attempts"},
    {"pipeline"},
    {"shared_run"},
    {"progress", "cli", "__main__"},
    {"transform"},
    {"local", "orchestration"},
]
# Neighbours on one floor that build on each other.
ALLOWED = {
    ("config", "database_url"),
    ("raw_statements", "statements"),
    ("key_buckets", "statements"),
    ("key_buckets", "raw_statements"),
    ("catalog", "table_files"),
    ("target", "batch"),
    ("raw_load", "batch"),
    ("raw_load", "target"),
    ("cli", "progress"),
    ("__main__", "cli"),
}
FOLDER = Path(etl.__file__).parent


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("etl."))
        elif isinstance(node, ast.ImportFrom) and node.module == "etl":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("etl."):
            yield str(node.module).split(".")[1]


def test_a_module_imports_lower_floors_only():
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    modules = {path: path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__"}
    modules |= {path: path.parent.name for path in FOLDER.glob("*/*.py")}
    wrong = [
        f"{path.relative_to(FOLDER)} imports {name}"
        for path, module in modules.items()
        for name in imported_modules(path)
        if floor_of[name] >= floor_of[module] and name != path.parent.name and (module, name) not in ALLOWED
    ]

    assert len(modules) > 15
    assert wrong == []


def test_only_the_top_floor_prints():
    printing = {
        path.stem
        for path in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }

    assert printing == {"cli", "progress"}
