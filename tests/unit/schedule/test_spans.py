from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jitmk.program.access import Span
from jitmk.program.lowering import lower
from jitmk.schedule.spans import Intervals, merge, phase_spans
from tests.support.features import feature_spec
from tests.support.tiny import tiny_spec

PAIRS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=12)


def intervals(pairs: list[tuple[int, int]]) -> Intervals:
    begin = np.array([at for at, _ in pairs], dtype=np.int64)
    end = np.array([at + length for at, length in pairs], dtype=np.int64)
    return Intervals(np.arange(len(pairs)), begin, end)


def values(part: Intervals) -> set[int]:
    return {value for begin, end in zip(part.begin, part.end, strict=True) for value in range(begin, end)}


def test_spans_are_those_of_the_phase() -> None:
    phases = [*lower(tiny_spec(num_heads=12, num_kv_heads=1), splits=3).phases]
    phases += lower(feature_spec("two-ropes"), fused=False).phases
    for phase in phases:
        spans = phase_spans(phase)
        for by_operand, of_unit in ((spans.reads, phase.reads), (spans.writes, phase.writes)):
            expected = sorted((u, s.operand, s.begin, s.end) for u in range(phase.units) for s in of_unit(u))
            found = sorted(
                (int(unit), operand, int(begin), int(end))
                for operand, part in by_operand.items()
                for unit, begin, end in zip(part.unit, part.begin, part.end, strict=True)
            )
            assert found == expected
            assert all(isinstance(span, Span) for span in of_unit(0))


def test_layers_share_spans() -> None:
    program = lower(tiny_spec(num_layers=2))
    first, second = (next(p for p in program.phases if p.name == f"layers.{i}.qkv") for i in (0, 1))
    assert phase_spans(first) is phase_spans(second)


@given(st.lists(PAIRS, max_size=3), PAIRS)
def test_runs_know_what_they_hold(parts: list[list[tuple[int, int]]], asked: list[tuple[int, int]]) -> None:
    columns = [intervals(pairs) for pairs in parts if pairs]
    runs, held = merge(columns), set().union(*map(values, columns)) if columns else set()
    assert {v for b, e in zip(runs.begin, runs.end, strict=True) for v in range(b, e)} == held
    assert (runs.begin[1:] > runs.end[:-1]).all()
    wanted = intervals(asked)
    each = [set(range(at, at + length)) for at, length in asked]
    assert runs.cover(wanted).tolist() == [one <= held for one in each]
    assert runs.touch(wanted).tolist() == [bool(one & held) for one in each]
