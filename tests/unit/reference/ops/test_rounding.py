from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from jitmk.reference.ops.rounding import to_bf16, unit_values


def test_rounds_to_nearest_even() -> None:
    x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0, float("inf")])
    assert to_bf16(x).tolist() == [1.0, 1 + 2**-6, 1 + 2**-7, -0.0, float("inf")]


@given(st.integers(1, 100), st.integers(1, 9), st.data())
def test_unit_values(values: int, per_unit: int, data: st.DataObject) -> None:
    units = -(-values // per_unit)
    begin = data.draw(st.integers(0, units - 1))
    some = range(begin, units, data.draw(st.integers(1, units)))
    expected = [v for unit in some for v in range(unit * per_unit, min(values, (unit + 1) * per_unit))]
    assert torch.arange(values)[unit_values(some, values, per_unit)].tolist() == expected
