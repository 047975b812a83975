"""A Jinja environment for templates that nobody has read: sandboxed, immutable, and bounded in time and size.

A chat template is a program from whoever published the checkpoint. The sandbox of Jinja keeps it from Python's
internals; what is added here keeps it from running for ever or filling the memory. Each render has a `Meter`:

- every iteration of a loop, every call and every filter checks the deadline;
- everything that is printed, also into a variable, counts against a total;
- values are weighed before anything that could multiply them is done to them.

It is the one place where Jinja's grammar meets untrusted text; kernels are rendered by another environment.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 5.0
"""Longest that a render may take. The longest templates in use take a few milliseconds."""

MAX_SIZE = 2**22
"""Characters and items that a value may have, and that a render may print, beyond 16 times its input."""

_MAX_GROWTH = 64  # A single operation may make this many times as much, by a pessimistic estimate.
_MAX_WIDTH = 1000  # of padding, indentation and the like
_MAX_BITS = 4096  # of an integer
# A width of four digits or more, or one that is computed.
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(\d{4}|\*)|\{[^{}]*(\d{4}|\{)")
_MULTIPLYING = frozenset({"replace", "translate", "expandtabs", "join"})
_FORMATTING = frozenset({"format", "format_map"})


class TemplateRefusal(TemplateError):
    """The template itself refused its input, through `raise_exception`."""


class Meter:
    """What one render has used up.

    Args:
        input_size: weight of the data that the template is given.
        seconds: until the deadline.
    """

    def __init__(self, input_size: int = 0, seconds: float = MAX_SECONDS) -> None:
        self._limit = MAX_SIZE + 16 * input_size
        self._printed = 0
        self._deadline = time.monotonic() + seconds

    def tick(self) -> None:
        """Raises SecurityError past the deadline."""
        if time.monotonic() > self._deadline:
            raise SecurityError("it ran longer than templates may")

    def weigh(self, *values: object) -> int:
        """Characters and items in `values`, everything that they hold included. Raises SecurityError past the limit."""
        weight, todo = 0, list(values)
        while todo:
            value = todo.pop()
            weight += 1
            if isinstance(value, str):
                weight += len(value)
            elif isinstance(value, (list, tuple, set, frozenset)):
                todo.extend(value)
            elif isinstance(value, dict):
                todo.extend(value.keys())
                todo.extend(value.values())
            elif isinstance(value, range):
                weight += len(value)
            self.check(weight + len(todo))
        return weight

    def check_product(self, first: int, second: int) -> None:
        """Raises SecurityError when something may become `first` times `second` as large, and that is too much."""
        self.check(first * second // _MAX_GROWTH)

    def check_format(self, text: str, weight: int) -> None:
        """Checks a format string whose arguments weigh `weight`."""
        if _WIDE_FORMAT.search(text):
            raise SecurityError("it formatted with a width that templates may not have")
        self.check_product(text.count("%") + text.count("{"), weight + _MAX_WIDTH)

    def check(self, size: int) -> None:
        """Raises SecurityError when something of this size would be too much."""
        if size > self._limit:
            raise SecurityError(f"it made more text or data ({size}) than templates may")

    def print(self, value: object) -> str:
        """`value` as text, counted."""
        self.tick()
        self.weigh(value)
        text = str(value)
        self._printed += len(text)
        self.check(self._printed)
        return text


_METER: ContextVar[Meter] = ContextVar("template_meter")


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Whatever templates do inside counts against `meter`. Compiling needs one too: Jinja folds constants."""
    token = _METER.set(meter)
    try:
        yield
    finally:
        _METER.reset(token)


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """The environment, with the names that transformers gives to chat templates."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.filters = {name: _guarded(function) for name, function in self.filters.items()}
        self.filters |= {"tojson": _guarded(_tojson), "_watched": _watched, "_printed": _printed, "_joined": _joined}
        del self.globals["lipsum"], self.filters["urlize"]  # slow, and of no use here
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _Namespace,
            # Not the type itself, which offers more than a constructor.
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """One of `intercepted_binops`."""
        meter = _METER.get()
        weight = meter.weigh(left) + meter.weigh(right)
        if operator == "**":
            _check_bits(_bits(left) * (abs(right) if isinstance(right, int) else 1))
        elif operator == "*":
            _check_bits(_bits(left) + _bits(right))
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                    meter.check(meter.weigh(sequence) * count)
        elif operator == "%" and isinstance(left, str):
            meter.check_format(left, weight)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Any call that a template makes."""
        meter = _METER.get()
        meter.tick()
        weight = meter.weigh(*args, *kwargs.values())
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            _check_widths(args)
            if name in _MULTIPLYING:
                meter.check_product(len(owner) + 1, weight)
            elif name in _FORMATTING:
                meter.check_format(owner, weight)
        return super().call(context, obj, *args, **kwargs)

    def compile_guarded(self, source: str) -> Any:
        """A template of `source`, with the meter built in. Call it, and render its result, inside `metered`."""
        tree = _Instrument().visit(self.parse(source))
        return self.from_string(tree)


class _GenerationTag(Extension):
    """`{% generation %}`, with which templates mark what the assistant said, for training: renders its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """Jinja's namespace, without names that could shadow what Python looks up."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that `namespace(self=1)` works
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _Instrument(NodeTransformer):
    """Puts the meter into loops, prints and concatenations."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_watched")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [_filtered(child, "_printed") for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        parts = nodes.List(node.nodes)
        parts.lineno, parts.environment = node.lineno, node.environment
        return _filtered(parts, "_joined")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    result = nodes.Filter(node, name, [], [], None, None)
    result.lineno, result.environment = node.lineno, node.environment
    return result


# These three take the context only because Jinja does not fold such filters at compile time.


@pass_context
def _watched(_: Context, values: Iterable[Any]) -> Iterator[Any]:
    meter = _METER.get()
    for value in values:
        meter.tick()
        yield value


@pass_context
def _printed(_: Context, value: object) -> str:
    return _METER.get().print(value)


@pass_context
def _joined(_: Context, parts: list[Any]) -> str:
    _METER.get().weigh(parts)
    return "".join(str(part) for part in parts)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that weighs its arguments first. `wraps` keeps the marks by which Jinja passes it a context."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.tick()
        _check_widths((*args[1:], *kwargs.values()))
        weights = [meter.weigh(value) for value in (*args, *kwargs.values())]
        # The value that is filtered is the heaviest, or should be; the others may be repeated for each part of it.
        heaviest, *others = sorted(weights, reverse=True)
        meter.check_product(heaviest, max(others, default=1))
        if function.__name__ == "do_format":
            meter.check_format(str(args[0]), sum(weights))
        result = function(*args, **kwargs)
        return _weighed(result) if isinstance(result, Iterator) else result

    return guarded


def _weighed(values: Iterator[Any]) -> Iterator[Any]:
    """A lazy result, weighed as it is taken."""
    meter, weight = _METER.get(), 0
    for value in values:
        meter.tick()
        weight += meter.weigh(value)
        meter.check(weight)
        yield value


def _check_widths(values: Iterable[object]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_WIDTH:
            raise SecurityError(f"it asked for a width or count of {value}; templates may have {_MAX_WIDTH}")


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise SecurityError(f"it computed a number of {bits} bits; templates may have {_MAX_BITS}")


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it set the attribute {name!r} of a namespace; templates may not begin one with '_'")


def _raise_exception(message: object) -> None:
    raise TemplateRefusal(str(message))


def _strftime_now(pattern: str) -> str:
    _METER.get().check_format(pattern, 0)
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
