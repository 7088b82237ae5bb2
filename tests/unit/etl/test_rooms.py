"""The rooms of `etl/` import each other one way only, without circles, and few modules print."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import etl

FOLDER = Path(etl.__file__).parent
# A room imports rooms of the lines above it, and its own modules. Rooms of one line do not know each other.
ORDER = (
    {"text"},
    {"errors"},
    {"type_names"},
    {"model"},
    {"results"},
    {"database_url", "display"},
    {"config"},
    {"policy", "postgres"},
    {"keys"},
    {"ledger", "source"},
    {"target"},
    {"compare"},
    {"replicate"},
    {"commands", "transform"},
    {"cli", "orchestration"},
    {"__init__", "__main__"},
)
BESIDE = {("target", "source")}  # source and target do not know each other either
MOST_MODULES = 9
MODULES = {path.relative_to(FOLDER).with_suffix(""): path for path in sorted(FOLDER.rglob("*.py"))}
NAMES = {".".join(path.parts): path.parts[0] for path in MODULES}  # of a module, and of its room


def imported(path):
    """Return the names of the product's modules that a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "etl":
            below = node.module.removeprefix("etl").removeprefix(".")
            for name in node.names:
                whole = f"{below}.{name.name}".removeprefix(".")
                yield whole if whole in NAMES else below


IMPORTS = {name: set(imported(path)) for name, path in zip(NAMES, MODULES.values(), strict=True)}


def test_rooms_import_one_way():
    level = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
    crossings = {(NAMES[one], NAMES[other]) for one, others in IMPORTS.items() for other in others}
    wrong = {(one, other) for one, other in crossings if one != other and level[other] >= level[one]}

    assert len(crossings) > 40
    assert wrong | (crossings & BESIDE) == set()


def test_no_modules_import_each_other_in_cycles():
    assert len(list(TopologicalSorter(IMPORTS).static_order())) >= len(NAMES)


def test_no_room_has_too_many_modules():
    folders = {path.parent for path in MODULES}
    sizes = {str(one): sum(path.parent == one and path.name[0] != "_" for path in MODULES) for one in folders}

    assert len(sizes) > 8
    assert {name: size for name, size in sizes.items() if size > MOST_MODULES} == {}


def test_only_user_facing_rooms_print():
    printing = {
        name
        for name, path in zip(NAMES, MODULES.values(), strict=True)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }

    # transform runs in processes of its own, whose output is that of dbt.
    assert printing == {"cli", "display", "transform.__main__", "transform.project"}
