"""Importing jitmk is light and does nothing; its exports are there when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jitmk

# What takes long to import, or belongs to a GPU. ``jitmk`` and ``jitmk-cache`` need none of it.
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "huggingface_hub", "cuda", "jinja2", "tqdm")


def loaded_after(statement: str, folder: Path) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``statement``, run in an empty ``folder``."""
    code = f"{statement}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(Path(jitmk.__file__).parent.parent), "HOME": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


@pytest.mark.parametrize("statement", ["import jitmk", "import jitmk.cli.cache", "import jitmk.jit"])
def test_import_loads_nothing_heavy_and_writes_nothing(statement: str, tmp_path: Path) -> None:
    # What site-packages loads into every interpreter is not jitmk's doing.
    loaded = loaded_after(statement, tmp_path) - loaded_after("pass", tmp_path)
    assert loaded.isdisjoint(HEAVY)
    assert list(tmp_path.iterdir()) == []


def test_import_of_the_package_loads_only_itself(tmp_path: Path) -> None:
    code = "import jitmk, sys; print(*[name for name in sys.modules if name.startswith('jitmk')])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(jitmk.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["jitmk"]


def test_every_export_is_defined_where_the_table_says() -> None:
    root = Path(jitmk.__file__).parent.parent
    for name, module in jitmk._EXPORTS.items():
        path = root / (module.replace(".", "/") + ".py")
        if not path.is_file():
            path = root / module.replace(".", "/") / "__init__.py"
        defined: set[str] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
        assert name in defined, f"{module} does not define {name}"


def test_type_checkers_see_the_same_exports() -> None:
    tree = ast.parse(Path(jitmk.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == jitmk._EXPORTS


def test_exports_are_the_very_objects() -> None:
    from jitmk.arch import GpuArch
    from jitmk.errors import JitmkError

    assert jitmk.GpuArch is GpuArch
    assert jitmk.JitmkError is JitmkError
    assert {"GpuArch", "load_model", "__version__"} <= set(dir(jitmk))
    assert set(jitmk.__all__) <= set(dir(jitmk))


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'"):
        jitmk.no_such_thing  # noqa: B018
