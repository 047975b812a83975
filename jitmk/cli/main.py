"""The command `jitmk`.

Starting it loads neither torch nor anything that depends on it: each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

from jitmk import __version__
from jitmk.cli import compile as compile_command
from jitmk.cli import diff, generate, info
from jitmk.errors import JitmkError
from jitmk.settings import get_settings

EXIT_ERROR = 1
"""Exit status after an error of jitmk."""
EXIT_USAGE = 2
"""Exit status after arguments that the command does not have."""
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""


class _Parser(argparse.ArgumentParser):
    """argparse, with errors in one line."""

    def error(self, message: str) -> NoReturn:
        _say("error", f"{message} (see {self.prog} --help)")
        sys.exit(EXIT_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `jitmk` with all its commands."""
    parser = _Parser(
        prog="jitmk",
        description="Run language models with one JIT-compiled GPU kernel, or with its reference on the CPU.",
        epilog="jitmk-cache manages the compiled kernels on disk.",
    )
    parser.add_argument("--version", action="version", version=f"jitmk {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for module in (generate, compile_command, diff, info):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    With JITMK_DEBUG=1 errors are raised with their traceback instead of being told in one line.
    """
    warnings.showwarning = _show_warning
    args = build_parser().parse_args(arguments)
    try:
        status = args.run(args)
        sys.stdout.flush()
    except JitmkError as error:
        if _debugging():
            raise
        _say("error", str(error))
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`jitmk generate ... | head`); Python must not complain again when it exits.
        sys.stdout = None
        return EXIT_ERROR
    return int(status)


def _debugging() -> bool:
    try:
        return get_settings().debug
    except JitmkError:
        return False


def _say(kind: str, message: str) -> None:
    print(f"jitmk: {kind}: {message}", file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Warnings in the form of errors: what a user of the command can act on is the text, not the line of code."""
    _say("warning", str(message))


if __name__ == "__main__":
    sys.exit(main())
