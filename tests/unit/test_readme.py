"""What the README says is so."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from pathlib import Path

from benchmarks import decode
from jitmk import errors
from jitmk.cli import cache
from jitmk.cli.main import build_parser
from jitmk.settings import markdown_table

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_table_of_settings_is_the_one_of_the_code() -> None:
    table = README.split("a test compares) -->\n")[1].split("\n<!-- settings: end")[0]
    assert table == markdown_table()


def test_every_error_is_named() -> None:
    for name in [name for name, value in vars(errors).items() if name.endswith("Error") and isinstance(value, type)]:
        assert f"`{name}`" in README or f"`jitmk.{name}`" in README, name


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


def test_every_command_and_flag_exists() -> None:
    parsers = {f"jitmk {name}": parser for name, parser in commands_of(build_parser()).items()}
    parsers |= {f"jitmk-cache {name}": parser for name, parser in commands_of(cache._parser()).items()}
    seen = set()
    for language, block in BLOCKS:
        for line in block.splitlines() if language == "sh" else []:
            for name in re.findall(r"jitmk(?:-cache)? [a-z]+", line.split(" #")[0]):
                seen.add(name)
                for flag in re.findall(r"--[a-z-]+", line.split(" #")[0]):
                    assert flag in parsers[name]._option_string_actions, (name, flag)
    assert seen >= {"jitmk generate", "jitmk compile", "jitmk diff", "jitmk info", "jitmk-cache clear"}
    lines = [line.split(" #")[0] for _, block in BLOCKS for line in block.splitlines() if "benchmarks.decode" in line]
    parsed = [decode._parse(line.split("benchmarks.decode")[1].split()) for line in lines]
    assert [args.contexts for args in parsed] == [[128, 4096, 8192], [128, 1024], [128], [128, 4096, 8192]]


def test_the_example_runs() -> None:
    (example,) = [block for language, block in BLOCKS if language == "python"]
    names: dict[str, object] = {}
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(example, "README.md", "exec"), names)
    assert "-" in shown.getvalue() and len(shown.getvalue()) > 100


def test_every_path_and_link_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    (tree,) = [block for language, block in BLOCKS if not language]
    for name in re.findall(r"^ {4}(\w+)/", tree, re.MULTILINE):
        assert (ROOT / "jitmk" / name).is_dir(), name
