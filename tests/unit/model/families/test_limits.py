"""Specs that contradict themselves, as a family of one's own might make them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jitmk.errors import ConfigError, UnsupportedModelError
from jitmk.model.families import spec_from_config
from jitmk.model.families.limits import check_spec
from jitmk.model.spec import LayerSpec, NormKind, NormSpec, RopeKind, RopeSpec
from tests.unit.model.configs import llama_config

LLAMA = spec_from_config(llama_config()).spec


def test_a_good_spec_passes() -> None:
    check_spec(LLAMA)
    check_spec(replace(LLAMA, parallel=True, mlp_bias=True))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"norm": NormSpec(NormKind.RMS, 1e-6, bias=True)}, ConfigError, "'rms' has no bias"),
        ({"parallel": True, "post_norm": True}, UnsupportedModelError, "post_norm=True"),
        ({"parallel": True, "pre_norm": False}, UnsupportedModelError, "pre_norm=False"),
        ({"layers": (LayerSpec(),)}, ConfigError, "num_hidden_layers=2, but 1 layers"),
        ({"layers": (LayerSpec(), LayerSpec(rope=1))}, ConfigError, "layer 1 rotates by rope 1 of 1"),
        ({"ropes": ()}, ConfigError, "layer 0 rotates by rope 0 of 0"),
        ({"layers": (LayerSpec(window=0),) * 2}, ConfigError, "layer 0 has a window of 0"),
        ({"ropes": (RopeSpec(RopeKind.DEFAULT, 1e4, 33),)}, UnsupportedModelError, "33 rotated dimensions"),
        ({"ropes": (RopeSpec(RopeKind.DEFAULT, 1e4, 66),)}, UnsupportedModelError, "at most head_dim=64"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        check_spec(replace(LLAMA, **changes))
