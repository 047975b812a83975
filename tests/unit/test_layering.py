"""Imports inside jitmk point only upward: each part may use the parts above it, and never the other way round."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import jitmk

PACKAGE = Path(jitmk.__file__).parent

_BASE = {"errors", "settings", "arch", "resources"}
_PROGRAM = {*_BASE, "model", "program", "schedule"}
_ENGINE = {*_PROGRAM, "codegen", "jit", "cuda", "reference", "trace", "models"}

# Part -> the parts that it may import, besides itself and the package's own __init__ (which holds the version).
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "arch": {"errors"},
    "resources": {"errors"},
    "models": {"errors"},
    "model": {*_BASE, "models"},
    "program": {*_BASE, "model"},
    "schedule": {*_BASE, "model", "program"},
    "codegen": _PROGRAM,
    "jit": _BASE,
    "cuda": {*_BASE, "jit"},
    "reference": _PROGRAM,
    "trace": _PROGRAM,
    "engine": _ENGINE,
    "api": {*_ENGINE, "engine"},
    "cli": {*_ENGINE, "engine", "api"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def package_of(path: Path) -> str:
    return ".".join(("jitmk", *path.relative_to(PACKAGE).parent.parts))


def forbidden(path: Path, text: str) -> list[str]:
    """The imports of one module that point the wrong way."""
    part = part_of(path)
    if part == "__init__":  # it exports from everywhere, but imports nothing itself: see test_import.py
        return []
    found = []
    for line, name in imports(ast.parse(text), package_of(path)):
        words = name.split(".")
        if words[0] != "jitmk" or len(words) == 1:
            continue
        target = words[1]
        if target.startswith("_") or target == part:
            continue
        if target not in ALLOWED[part]:
            found.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    return found


def test_every_part_has_a_place_in_the_order() -> None:
    unplaced = {part_of(path) for path in modules()} - set(ALLOWED) - {"__init__"}
    assert not unplaced, f"give {unplaced} a place in ALLOWED"


def test_the_order_has_no_cycle() -> None:
    done: set[str] = set()
    remaining = dict(ALLOWED)
    while remaining:
        ready = {part for part, above in remaining.items() if above <= done}
        assert ready, f"a cycle among {sorted(remaining)}"
        done |= ready
        for part in ready:
            del remaining[part]


def test_imports_point_upward() -> None:
    found = [line for path in modules() for line in forbidden(path, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("jit/key.py", "from jitmk.program.isa import Opcode"),
        ("jit/key.py", "def f():\n    import jitmk.engine.model"),
        ("program/isa.py", "from ..schedule import build"),
        ("errors.py", "from jitmk import settings"),
    ],
)
def test_a_wrong_import_is_seen(module: str, text: str) -> None:
    assert forbidden(PACKAGE / module, text)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("jit/key.py", "from jitmk import __version__\nfrom jitmk.arch import GpuArch\nimport os"),
        ("jit/key.py", "from .cache import KernelCache"),
        ("engine/model.py", "from jitmk.cuda.launch import Launcher"),
    ],
)
def test_a_right_import_is_not(module: str, text: str) -> None:
    assert not forbidden(PACKAGE / module, text)


def reads_environment(text: str) -> list[int]:
    """Lines that name ``os.environ`` or one of its relatives."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and node.attr in names:
                found.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [node.lineno for alias in node.names if alias.name in names]
    return found


def test_only_settings_reads_the_environment() -> None:
    readers = {
        str(path.relative_to(PACKAGE)) for path in modules() if reads_environment(path.read_text(encoding="utf-8"))
    }
    assert readers == {"settings.py"}


@pytest.mark.parametrize("text", ["import os\nos.environ['A']", "from os import getenv", "import os\nos.getenv('A')"])
def test_a_read_of_the_environment_is_seen(text: str) -> None:
    assert reads_environment(text)
