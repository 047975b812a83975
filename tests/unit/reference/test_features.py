"""Every part of a model, and any combination of them, however it is lowered, against the plainest torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import LayerSpec, ModelSpec, NormSpec
from jitmk.program.fusion import Fusion
from jitmk.reference.machine import ReferenceMachine
from jitmk.reference.weights import ReferenceWeights
from tests.support.exact import without_roundings
from tests.support.features import FEATURES, any_fusions, any_specs, feature_spec
from tests.support.plain_model import PlainModel
from tests.support.truth import relative_error

IDS = torch.randint(0, 101, (44,), generator=torch.Generator().manual_seed(1)).tolist()
"""Longer than the windows, two tiles of the cache, and the context for which ropes are pretrained."""

FP32_NOISE = 1e-5
"""Relative: sums of some hundred fp32 products in another order are worth about 1e-6."""

BF16_NOISE = 2.0**-6
"""Relative, of two layers: about thirty roundings of 2^-9 one after the other, which add up like 30^0.5."""


def logits_of(spec: ModelSpec, weights: ModelSpec | None = None, **arguments: Any) -> torch.Tensor:
    """Logits of IDS, token by token through the machine; the weights are those of another spec on request."""
    machine = ReferenceMachine(spec, ReferenceWeights(spec, RandomCheckpoint(weights or spec)), **arguments)
    rows = []
    for position, token in enumerate(IDS):
        logits = machine.step(token, position, want_logits=True, prompt_length=len(IDS)).logits
        assert logits is not None
        rows.append(logits)
    return torch.stack(rows)


@cache
def truth(name: str) -> torch.Tensor:
    return PlainModel(RandomCheckpoint(feature_spec(name))).logits(torch.tensor(IDS))


LOWERINGS: dict[str, dict[str, Any]] = {
    "fused": {},
    "unfused": {"fused": False},
    "split": {"splits": 3},
    "unfused-split": {"fused": False, "splits": 3},
}


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", FEATURES)
def test_a_program_is_the_model(name: str, lowering: str) -> None:
    with without_roundings():
        exact = logits_of(feature_spec(name), sums=torch.float64, **LOWERINGS[lowering])
    assert relative_error(exact, truth(name)) <= FP32_NOISE


@settings(max_examples=25, deadline=None, derandomize=True)
@given(any_specs(), any_fusions(), st.sampled_from((1, 3)))
def test_any_combination_of_parts(spec: ModelSpec, fusion: Fusion, splits: int) -> None:
    expected = PlainModel(RandomCheckpoint(spec)).logits(torch.tensor(IDS))
    with without_roundings():
        exact = logits_of(spec, fused=fusion, splits=splits, sums=torch.float64)
    assert relative_error(exact, expected) <= FP32_NOISE


@pytest.mark.parametrize("name", FEATURES)
def test_both_lowerings_are_close_to_the_truth(name: str) -> None:
    fused, unfused = logits_of(feature_spec(name)), logits_of(feature_spec(name), fused=False)
    assert relative_error(fused, truth(name)) <= BF16_NOISE
    assert relative_error(unfused, truth(name)) <= BF16_NOISE
    assert relative_error(unfused, fused) <= BF16_NOISE


PARTS: list[tuple[str, dict[str, Any]]] = [
    ("sandwich", {"norm": NormSpec(feature_spec("sandwich").norm.kind, 1e-6)}),
    ("sandwich", {"layers": (LayerSpec(),) * 2}),
    ("sandwich", {"attention_soft_cap": None}),
    ("sandwich", {"logit_soft_cap": None}),
    ("sandwich", {"embedding_scale": 1.0}),
    ("two-ropes", {"qk_norm": None}),
    ("two-ropes", {"layers": (LayerSpec(window=20, rope=0), LayerSpec(rope=0), LayerSpec(window=3, rope=None))}),
    ("two-ropes", {"layers": (LayerSpec(window=20, rope=1), LayerSpec(rope=0), LayerSpec(window=3, rope=0))}),
    ("post-norm", {"post_norm": False}),
    ("learned-positions", {"learned_positions": False}),
    ("learned-positions", {"mlp_bias": False}),
    ("layer-norm", {"norm": replace(feature_spec("layer-norm").norm, bias=False)}),
    ("layer-norm", {"layers": (LayerSpec(window=18),) * 2}),
    ("parallel", {"residual_scale": 1.0}),
    ("multipliers", {"logit_scale": 1.0}),
]


@pytest.mark.parametrize(("name", "without"), PARTS)
def test_the_truth_notices_what_is_missing(name: str, without: dict[str, Any]) -> None:
    """The comparison can fail: a model without a part is not within a hundred times the noise."""
    right = feature_spec(name)
    with without_roundings():
        wrong = logits_of(replace(right, **without), right, sums=torch.float64)
    assert relative_error(wrong, truth(name)) > 100 * FP32_NOISE
