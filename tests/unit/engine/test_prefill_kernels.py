"""The kernels of prefill, run on the host, do what the same steps in torch do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from jitmk.engine.arena import WeightArena, load_weights
from jitmk.engine.kv_cache import KvCache
from jitmk.engine.prefill import Prefill
from jitmk.engine.prefill_kernels import KernelOps
from jitmk.engine.prefill_ops import Block, TorchOps, activation
from jitmk.engine.rope_tables import RopeTables
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import (
    Activation,
    LayerSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    QkNorm,
    QkNormScope,
    RopeKind,
)
from jitmk.program.packing import MatrixLayout, pack
from jitmk.program.weights import plan_weights
from tests.support.device_on_host import HostKernels
from tests.support.tiny import tiny_rope, tiny_spec

CPU = torch.device("cpu")
MAX_SEQ_LEN = 64

SPECS = {
    "tied": tiny_spec(tied_embeddings=True, hidden_size=320, intermediate_size=1056),
    "layer-norms-80": tiny_spec(
        norm=NormSpec(NormKind.LAYER, 1e-5, bias=True),
        ropes=(),
        learned_positions=True,
        activation=Activation.GELU,
        gated=False,
        head_dim=80,
        num_kv_heads=4,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tied_embeddings=True,
    ),
    "sandwich-96": tiny_spec(
        norm=NormSpec(NormKind.RMS, 1e-6, offset=1.0),
        post_norm=True,
        hidden_size=2064,
        head_dim=96,
        num_heads=2,
        num_kv_heads=1,
        qk_norm=QkNorm(NormKind.RMS, 1e-6, QkNormScope.HEAD, offset=1.0),
        ropes=(tiny_rope(RopeKind.DEFAULT, 96), tiny_rope(RopeKind.LINEAR, 96)),
        layers=(LayerSpec(window=10, rope=0), LayerSpec(rope=1)),
        activation=Activation.GELU_TANH,
        attention_soft_cap=5.0,
        embedding_scale=4.5,
        logit_soft_cap=8.0,
        tied_embeddings=True,
    ),
    "parallel-128": tiny_spec(
        norm=NormSpec(NormKind.LAYER, 1e-5),
        parallel=True,
        head_dim=128,
        qk_norm=QkNorm(NormKind.LAYER, 1e-5, QkNormScope.HEAD_WEIGHTS),
        activation=Activation.RELU,
        logit_scale=0.5,
    ),
    "post-norms": tiny_spec(
        pre_norm=False,
        post_norm=True,
        qk_norm=QkNorm(NormKind.RMS, 1e-6, QkNormScope.PROJECTION),
        ropes=(tiny_rope(RopeKind.YARN, 48),),
        layers=(LayerSpec(), LayerSpec(rope=None)),
        residual_scale=0.5,
    ),
}


class RoundingArena(WeightArena):
    """Weights on the CPU that are multiplied as those on a GPU are: in bf16."""

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.bfloat16


@dataclass(frozen=True)
class Both:
    """A model twice, with a cache each: through the kernels, and in plain torch with the roundings of a GPU."""

    spec: ModelSpec
    arena: WeightArena
    kernels: KernelOps
    plain: TorchOps
    caches: tuple[KvCache, KvCache]

    def rows(self, count: int, values: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn((count, values), generator=torch.Generator().manual_seed(seed)).to(dtype)

    def same_heads(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        """Equal, but for what fp32 noise tipped over to the next bf16, or was rounded once more in between."""
        assert actual.shape == expected.shape
        norm = self.spec.qk_norm
        if norm is not None and norm.scope is QkNormScope.PROJECTION:
            assert float((actual.float() - expected.float()).norm() / expected.float().norm()) < 2**-8
        else:
            assert_one_step(actual, expected)


@pytest.fixture(scope="module", params=SPECS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    spec = SPECS[request.param]
    loaded = load_weights(plan_weights(spec), RandomCheckpoint(spec), CPU, progress=False)
    arena = RoundingArena(loaded.plan, CPU)
    arena.weights, arena.constants = loaded.weights, loaded.constants
    caches = KvCache(spec, MAX_SEQ_LEN, CPU), KvCache(spec, MAX_SEQ_LEN, CPU)
    kernels = HostKernels(spec, tmp_path_factory.mktemp("kernels"))
    return Both(spec, arena, KernelOps(spec, arena, caches[0], kernels), TorchOps(spec, arena, caches[1]), caches)


def assert_one_step(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """bf16 values of sums whose order differs: a step of 2^-7 apart at most, and few of them at all."""
    torch.testing.assert_close(actual.float(), expected.float(), rtol=2**-7, atol=1e-5)
    assert float((actual != expected).float().mean()) < 0.02


def test_matrices_are_unpacked(both: Both) -> None:
    for name, matrix in both.arena.plan.matrices.items():
        if matrix.packed:
            assert torch.equal(both.kernels._matrix(name), both.arena.matrix(name)), name
    assert torch.equal(both.kernels._head_rows(16, 93), both.arena.head_rows(16, 93))


# Columns within one block, a slice that is not full, several chunks of different sizes, more chunks than warps.
@pytest.mark.parametrize(("rows", "columns"), [(24, 16), (17, 320), (16, 2048), (9, 2304), (16, 4352), (8, 16384)])
@pytest.mark.parametrize("both", ["tied"], indirect=True)
def test_any_layout_is_unpacked(rows: int, columns: int, both: Both) -> None:
    matrix, layout = both.rows(rows, columns, 1), MatrixLayout(rows, columns)
    packed, out = pack(matrix), torch.full((rows + 1, columns), torch.nan, dtype=torch.bfloat16)
    both.kernels._kernels.launch(
        "jitmk_unpack",
        packed=packed.data_ptr(),
        to=out.data_ptr(),
        rows=rows,
        columns=columns,
        blocks=layout.blocks,
        chunks=layout.chunks,
    )
    assert torch.equal(out[:rows], matrix) and bool(out[rows].isnan().all())


def test_embedding(both: Both) -> None:
    ids = torch.tensor([0, 100, 7, 8, 55, 55, 1])
    torch.testing.assert_close(both.kernels.embed(ids, 5), both.plain.embed(ids, 5), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("with_block", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
def test_additions_and_norms(with_block: bool, with_norm: bool, both: Both) -> None:
    hidden = both.spec.hidden_size
    # A mean beside which deviations are small: where squares of the whole are subtracted, they drown.
    residual = both.rows(7, hidden, 2, torch.float32) + 50
    block = None
    if with_block:
        post_norm = "layers.1.attention_post_norm" if both.spec.post_norm else None
        block = Block(both.rows(7, hidden, 3), post_norm)
    norm = "final_norm" if with_norm else None
    residuals = residual.clone(), residual.clone()
    ours = both.kernels.add_norm(residuals[0], block, norm)
    theirs = both.plain.add_norm(residuals[1], block, norm)
    torch.testing.assert_close(residuals[0], residuals[1], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=2**-7, atol=1e-4)
    if block is not None:
        only_added = residual.clone()
        both.kernels.add(only_added, block)
        assert torch.equal(only_added, residuals[0])


@pytest.mark.parametrize(("start", "count"), [(0, 40), (0, 16), (0, 1), (3, 2), (13, 20), (40, 24)])
@pytest.mark.parametrize("layer", [0, 1])
def test_heads_and_cache(layer: int, start: int, count: int, both: Both) -> None:
    spec = both.spec
    for cache in both.caches:
        # What was there before stays, and is read where the tokens do not begin the sequence.
        cache.tensor.copy_(torch.randn(cache.tensor.shape, generator=torch.Generator().manual_seed(4)))
    rope = spec.layers[layer].rope
    rotations = RopeTables(spec, CPU).rows(start, start + count, start + count)
    rotation = None if rope is None else rotations[rope]
    qkv = both.rows(count, spec.qkv_rows, 5)
    ours = both.kernels.finish_heads(layer, qkv.clone(), rotation, start)
    theirs = both.plain.finish_heads(layer, qkv.clone(), rotation, start)
    for actual, expected in zip(ours, theirs, strict=True):
        both.same_heads(actual, expected)
    both.same_heads(*(cache.tensor for cache in both.caches))


def test_activation(both: Both) -> None:
    x = 3 * both.rows(5, both.spec.intermediate_size * (2 if both.spec.gated else 1), 6)
    kind, wide = both.spec.activation, x.double()
    exact = activation(kind, wide[:, 0::2]) * wide[:, 1::2] if both.spec.gated else activation(kind, wide)
    # Rounded once; GELU's tail is a difference of numbers near 1.
    for result in (both.kernels.activate(x), both.plain.activate(x)):
        torch.testing.assert_close(result.double(), exact, rtol=1.01 * 2**-8, atol=5e-6)


def test_logits_of_the_last_token(both: Both) -> None:
    residual = both.rows(3, both.spec.hidden_size, 7, torch.float32)
    expected, last = torch.empty((3, both.spec.vocab_size)), torch.full((1, both.spec.vocab_size), torch.nan)
    both.plain.logits(residual, expected)
    both.kernels.logits(residual[-1:], last)
    torch.testing.assert_close(last, expected[-1:], rtol=1e-5, atol=1e-5)


def test_whole_prompts(both: Both) -> None:
    """A prompt, and one that continues it; the residual and the cache differ as far as roundings to bf16 tip over."""
    ids = [(7 * i + 3) % both.spec.vocab_size for i in range(MAX_SEQ_LEN)]
    for cache in both.caches:
        cache.clear()
    ours, theirs = (
        Prefill(both.spec, both.arena, cache, ops)
        for cache, ops in zip(both.caches, (both.kernels, both.plain), strict=True)
    )
    for begin, end in ((0, 37), (37, 60), (60, 61)):
        actual, expected = (prefill.run(ids[begin:end], begin) for prefill in (ours, theirs))
        assert float((actual - expected).norm() / expected.norm()) < 0.02
    actual, expected = (prefill.run(ids[:40], all_logits=True) for prefill in (ours, theirs))
    assert float((actual - expected).norm() / expected.norm()) < 0.02
