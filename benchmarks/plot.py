"""Microseconds a token against context, with the ceiling drawn in: a figure of one file of results.

    python -m benchmarks.plot benchmarks/results/decode-h200.json -o decode.svg

A row for each model: jitmk and its ceiling on the left, everything that was measured, and the references, on the right.
Needs matplotlib. Colours are those of Okabe and Ito (jfly.uni-koeln.de/color), which colour-blind readers can tell
apart; markers differ as well.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.baselines import KINDS
from benchmarks.records import JITMK, BenchmarkError, Record, read_records
from benchmarks.references import NOTE, REFERENCES, references_of
from jitmk.errors import JitmkError

CEILING = "ceiling: weights and KV, read once"

_EAGER, _COMPILED, _GRAPHS = KINDS.values()
_ROW_INCHES = 3.2
_WIDTH_INCHES = 11.0


@dataclass(frozen=True)
class Style:
    """How a series looks: colour, marker, line; hollow markers for what was not measured in this run."""

    color: str
    marker: str
    line: str
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """A line of the plot.

    Attributes:
        label: for the legend.
        points: (context, microseconds a token), by context.
        style: how it looks.
    """

    label: str
    points: tuple[tuple[int, float], ...]
    style: Style


_STYLES = {
    JITMK: Style("#0072B2", "o", "-"),
    CEILING: Style("#000000", "", "--"),
    _EAGER: Style("#CC79A7", "X", ":"),
    _COMPILED: Style("#E69F00", "^", ":"),
    _GRAPHS: Style("#D55E00", "v", ":"),
}
_REFERENCE_STYLES = (Style("#009E73", "s", "-.", hollow=True), Style("#56B4E9", "D", "-.", hollow=True))


def series_of(records: Sequence[Record], model: str) -> list[Series]:
    """What there is to draw of a model: jitmk, its ceiling, the other systems, the references."""
    mine = sorted((record for record in records if record.model == model), key=lambda record: record.context)
    found = []
    for label in (JITMK, CEILING, _EAGER, _COMPILED, _GRAPHS):
        if label == CEILING:
            points = [(r.context, r.ceiling_us) for r in mine if r.baseline == JITMK]
        else:
            points = [(r.context, r.us_per_token) for r in mine if r.baseline == label]
        if points:
            found.append(Series(label, tuple(points), _STYLES[label]))
    systems = list(dict.fromkeys(reference.system for reference in REFERENCES))
    for system, style in zip(systems, _REFERENCE_STYLES, strict=True):
        earlier = tuple(
            (reference.context, reference.us_per_token)
            for reference in references_of([model])
            if reference.system == system and reference.context is not None
        )
        if earlier:
            found.append(Series(f"{system} ({NOTE})", earlier, style))
    return found


def draw(records: Sequence[Record], path: Path) -> None:
    """Draws the records into an SVG file.

    Raises:
        BenchmarkError: there is no matplotlib, or no record of jitmk.
    """
    models = list(dict.fromkeys(record.model for record in records if record.baseline == JITMK))
    if not models:
        raise BenchmarkError("there is no record of jitmk to draw")
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        figure_type: Any = importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise BenchmarkError("drawing needs matplotlib: run pip install -e '.[bench]'") from error
    # Text stays text, and the same records give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jitmk", "font.size": 9}):
        figure = figure_type(figsize=(_WIDTH_INCHES, _ROW_INCHES * len(models) + 1), layout="constrained")
        panels = figure.subplots(len(models), 2, squeeze=False)
        legend: dict[str, Any] = {}
        for model, (left, right) in zip(models, panels, strict=True):
            drawn = series_of(records, model)
            _panel(
                left,
                f"{model}: jitmk and its ceiling (the axis is cut)",
                [s for s in drawn if s.label in (JITMK, CEILING)],
                model,
            )
            left.margins(y=0.35)
            right.set_yscale("log")
            legend |= _panel(right, f"{model}: beside others (logarithmic)", drawn, model)
            _label_ticks(matplotlib, right)
        figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=2, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axes: Any, title: str, drawn: Sequence[Series], model: str) -> dict[str, Any]:
    """Draws the series of a model; returns the lines by label."""
    lines = {}
    for series in drawn:
        style = series.style
        (line,) = axes.plot(
            *zip(*series.points, strict=True),
            color=style.color,
            marker=style.marker,
            linestyle=style.line,
            markerfacecolor="white" if style.hollow else style.color,
            label=series.label,
        )
        line.set_gid(f"{model}: {series.label}")
        lines[series.label] = line
    axes.set_title(title)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("us a token, batch 1")
    axes.grid(visible=True, which="both", color="#DDDDDD", linewidth=0.5)
    return lines


def _label_ticks(matplotlib: Any, axes: Any) -> None:
    """Plain numbers on a logarithmic axis that may span less than a decade."""
    ticker = importlib.import_module(f"{matplotlib.__name__}.ticker")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.0f}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws one file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a file of benchmarks.decode")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the SVG file to write")
    args = parser.parse_args(arguments)
    if args.out.suffix != ".svg":
        parser.error(f"{args.out} does not end in .svg, and it is SVG that is written")
    try:
        draw(read_records(args.results), args.out)
    except JitmkError as error:
        print(f"benchmarks.plot: error: {error}", file=sys.stderr)
        return 1
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
