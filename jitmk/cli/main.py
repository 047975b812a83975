"""The command `jitmk`.

Starting it loads neither torch nor anything that depends on it: each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

from jitmk import __version__
from jitmk.cli import compile as compile_command
from jitmk.cli import diff, generate, info, tune
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
    for module in (generate, compile_command, tune, diff, info):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    With JITMK_DEBUG=1 errors are raised with their traceback instead of being told in one line.
    """
    warnings.showwarning = _WarningTeller()
    args = build_parser().parse_args(arguments)
    try:
        _set_up_logging(_debugging())
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


def _set_up_logging(debug: bool) -> None:
    """Logs of jitmk go to stderr: warnings, and with JITMK_DEBUG=1 everything."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("jitmk: %(levelname)s: %(name)s: %(message)s"))
    logger = logging.getLogger("jitmk")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)


def _debugging() -> bool:
    try:
        return get_settings().debug
    except JitmkError:
        return False


def _say(kind: str, message: str) -> None:
    print(f"jitmk: {kind}: {message}", file=sys.stderr)


class _WarningTeller:
    """Tells warnings in the form of errors, each once: a user can act on the text, not on the line of code."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Takes the place of `warnings.showwarning`."""
        if str(message) not in self._told:
            self._told.add(str(message))
            _say("warning", str(message))


if __name__ == "__main__":
    sys.exit(main())
