from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jitmk.model.spec import NormKind, QkNorm, QkNormScope
from jitmk.program.configs import MERGED_SPLITS
from jitmk.program.fusion import FUSED, UNFUSED, Fusion
from jitmk.program.program import NARROW
from tests.support.tiny import tiny_spec


def test_what_is_not_wanted_stays_unfused() -> None:
    assert UNFUSED.possible(tiny_spec(post_norm=True)) == UNFUSED


@pytest.mark.parametrize("scope", QkNormScope)
def test_only_norms_within_a_head_are_fused_into_attention(scope: QkNormScope) -> None:
    spec = tiny_spec(qk_norm=QkNorm(NormKind.RMS, 1e-6, scope))
    assert FUSED.possible(spec) == replace(FUSED, qk_norm=scope is QkNormScope.HEAD)
    assert not replace(FUSED, rope=False).possible(spec).qk_norm, "what is rotated has been normed"


def test_post_norms_need_one_reader_with_a_prologue() -> None:
    assert FUSED.possible(tiny_spec(post_norm=True)).post_norm
    assert not FUSED.possible(tiny_spec(post_norm=True, parallel=True)).post_norm
    assert not replace(FUSED, norm=False).possible(tiny_spec(post_norm=True)).post_norm


@pytest.mark.parametrize(("hidden", "splits"), [(NARROW, MERGED_SPLITS), (NARROW + 16, 1)])
def test_projections_of_narrow_models_merge_splits(hidden: int, splits: int) -> None:
    spec = tiny_spec(hidden_size=hidden)
    assert Fusion.of(spec, True).merged_splits == Fusion.of(spec, Fusion(norm=False)).merged_splits == splits
    assert Fusion.of(spec, False).merged_splits == 1


@pytest.mark.parametrize(
    ("changes", "tiles"), [({}, 3), ({"head_dim": 128}, 1), ({"post_norm": True}, 1), ({"hidden_size": NARROW + 64}, 1)]
)
def test_tiles_of_short_heads_are_read_early_in_narrow_models(changes: dict[str, Any], tiles: int) -> None:
    spec = tiny_spec(**{"hidden_size": NARROW, "head_dim": 64} | changes)
    assert Fusion.of(spec, True).early_tiles(spec) == tiles
    assert Fusion.of(spec, False).early_tiles(spec) == 1
