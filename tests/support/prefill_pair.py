"""One model prefilled twice, through the kernels and in plain torch, and what must be the same of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from jitmk.engine.arena import WeightArena, load_weights
from jitmk.engine.kv_cache import KvCache
from jitmk.engine.prefill import Prefill
from jitmk.engine.prefill_kernels import KernelOps, Kernels
from jitmk.engine.prefill_ops import Block, TorchOps, activation
from jitmk.engine.rope_tables import RopeTables
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import Activation, LayerSpec, ModelSpec, NormKind, NormSpec, QkNorm, QkNormScope, RopeKind
from jitmk.program.packing import MatrixLayout, pack
from jitmk.program.weights import plan_weights
from tests.support.tiny import tiny_rope, tiny_spec
from tests.support.truth import relative_error

MAX_SEQ_LEN = 64

LAYOUTS = ((24, 16), (17, 320), (16, 2048), (9, 2304), (16, 4352), (8, 16384))
"""Rows and columns: one block, a slice that is not full, several chunks of different sizes, more chunks than warps."""

STRETCHES = ((0, 40), (0, 16), (0, 1), (3, 2), (13, 20), (40, 24))
"""Where tokens begin, and how many they are: whole tiles of the cache, and parts of one, two and three of them."""

SPECS = {
    "tied": tiny_spec(
        tied_embeddings=True,
        hidden_size=320,
        intermediate_size=1056,
        ropes=(tiny_rope(RopeKind.LLAMA3, 64), tiny_rope(RopeKind.DEFAULT, 50)),
        layers=(LayerSpec(rope=0), LayerSpec(rope=1)),
    ),
    "layer-norms-80": tiny_spec(
        norm=NormSpec(NormKind.LAYER, 1e-5, bias=True),
        ropes=(),
        learned_positions=True,
        max_positions=16384,  # the table must reach as far as the longest prompt of the tests
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
"""Between them everything that the kernels are specialised to."""


class RoundingArena(WeightArena):
    """Weights that are multiplied in bf16 on a CPU too, as they are on a GPU."""

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.bfloat16


@dataclass(frozen=True)
class Pair:
    """A model twice, with a cache each."""

    spec: ModelSpec
    arena: WeightArena
    kernels: KernelOps
    plain: TorchOps
    caches: tuple[KvCache, KvCache]

    @classmethod
    def of(cls, spec: ModelSpec, device: torch.device, kernels: Kernels, max_seq_len: int = MAX_SEQ_LEN) -> Pair:
        """The model with random weights on a device where `kernels` run."""
        loaded = load_weights(plan_weights(spec), RandomCheckpoint(spec), device, progress=False)
        arena = RoundingArena(loaded.plan, torch.device("cpu"))
        arena.weights, arena.constants = loaded.weights, loaded.constants
        caches = KvCache(spec, max_seq_len, device), KvCache(spec, max_seq_len, device)
        ours = KernelOps(spec, arena, caches[0], kernels)
        return cls(spec, arena, ours, TorchOps(spec, arena, caches[1]), caches)

    @property
    def device(self) -> torch.device:
        return self.arena.device

    def rows(self, count: int, values: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Normal values, the same on every device."""
        values_on_cpu = torch.randn((count, values), generator=torch.Generator().manual_seed(seed))
        return values_on_cpu.to(self.device, dtype)

    def prefills(self) -> tuple[Prefill, Prefill]:
        """Through the kernels, and in plain torch; both begin with an empty cache."""
        for cache in self.caches:
            cache.clear()
        ours = Prefill(self.spec, self.arena, self.caches[0], self.kernels)
        return ours, Prefill(self.spec, self.arena, self.caches[1], self.plain)


def matrices_are_unpacked(pair: Pair) -> None:
    for name, matrix in pair.arena.plan.matrices.items():
        if matrix.packed:
            assert torch.equal(pair.kernels._matrix(name), pair.arena.matrix(name)), name
    assert torch.equal(pair.kernels._head_rows(16, 93), pair.arena.head_rows(16, 93))


def any_layout_is_unpacked(pair: Pair) -> None:
    for rows, columns in LAYOUTS:
        matrix, layout = pair.rows(rows, columns, 1), MatrixLayout(rows, columns)
        packed, out = pack(matrix), torch.full_like(pair.rows(rows + 1, columns, 1), torch.nan)
        pair.kernels._kernels.launch(
            "jitmk_unpack",
            packed=packed.data_ptr(),
            to=out.data_ptr(),
            rows=rows,
            columns=columns,
            blocks=layout.blocks,
            chunks=layout.chunks,
        )
        assert torch.equal(out[:rows], matrix), (rows, columns)
        assert bool(out[rows].isnan().all()), "a row that does not exist was written"


def embeddings_agree(pair: Pair) -> None:
    ids = torch.tensor([0, 100, 7, 8, 55, 55, 1], device=pair.device)
    torch.testing.assert_close(pair.kernels.embed(ids, 5), pair.plain.embed(ids, 5), rtol=1e-6, atol=1e-6)


def additions_and_norms_agree(pair: Pair) -> None:
    # A mean beside which deviations are small: where squares of the whole are subtracted, they drown.
    residual = pair.rows(7, pair.spec.hidden_size, 2, torch.float32) + 50
    post_norm = "layers.1.attention_post_norm" if pair.spec.post_norm else None
    added = Block(pair.rows(7, pair.spec.hidden_size, 3), post_norm)
    for block in (None, added):
        for norm in (None, "final_norm"):
            residuals = residual.clone(), residual.clone()
            ours = pair.kernels.add_norm(residuals[0], block, norm)
            theirs = pair.plain.add_norm(residuals[1], block, norm)
            torch.testing.assert_close(residuals[0], residuals[1], rtol=1e-6, atol=1e-5)
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=2**-7, atol=1e-4)
    only_added = residual.clone()
    pair.kernels.add(only_added, added)
    assert torch.equal(only_added, residuals[0])


def heads_and_caches_agree(pair: Pair) -> None:
    spec = pair.spec
    for layer, of_layer in enumerate(spec.layers):
        for start, count in STRETCHES:
            for cache in pair.caches:
                # What was there before stays, and is read where the tokens do not begin the sequence.
                cache.tensor.copy_(torch.randn(cache.tensor.shape, generator=torch.Generator().manual_seed(4)))
            rotations = RopeTables(spec, pair.device).rows(start, start + count, start + count)
            rotation = None if of_layer.rope is None else rotations[of_layer.rope]
            qkv = pair.rows(count, spec.qkv_rows, 5)
            ours = pair.kernels.finish_heads(layer, qkv.clone(), rotation, start)
            theirs = pair.plain.finish_heads(layer, qkv.clone(), rotation, start)
            for actual, expected in zip(ours, theirs, strict=True):
                _assert_same_heads(spec, actual, expected)
            _assert_same_heads(spec, *(cache.tensor for cache in pair.caches))


def activations_are_exact(pair: Pair) -> None:
    x = 3 * pair.rows(5, pair.spec.gate_up_rows, 6)
    kind, wide = pair.spec.activation, x.double()
    exact = activation(kind, wide[:, 0::2]) * wide[:, 1::2] if pair.spec.gated else activation(kind, wide)
    # Rounded once; GELU's tail is a difference of numbers near 1.
    for result in (pair.kernels.activate(x), pair.plain.activate(x)):
        torch.testing.assert_close(result.double(), exact, rtol=1.01 * 2**-8, atol=5e-6)


def logits_of_the_last_token_agree(pair: Pair) -> None:
    residual = pair.rows(3, pair.spec.hidden_size, 7, torch.float32)
    expected = torch.empty((3, pair.spec.vocab_size), device=pair.device)
    last = torch.full_like(expected[-1:], torch.nan)
    pair.plain.logits(residual, expected)
    pair.kernels.logits(residual[-1:], last)
    torch.testing.assert_close(last, expected[-1:], rtol=1e-5, atol=1e-5)


def whole_prompts_agree(pair: Pair) -> None:
    """A prompt, and what continues it: they differ as far as roundings to bf16 tip over."""
    ids = [(7 * i + 3) % pair.spec.vocab_size for i in range(MAX_SEQ_LEN)]
    ours, theirs = pair.prefills()
    for begin, end in ((0, 37), (37, 60), (60, 61)):
        assert relative_error(ours.run(ids[begin:end], begin), theirs.run(ids[begin:end], begin)) < 0.02
    assert relative_error(ours.run(ids[:40], all_logits=True), theirs.run(ids[:40], all_logits=True)) < 0.02


CHECKS: dict[str, Callable[[Pair], None]] = {
    check.__name__: check
    for check in (
        matrices_are_unpacked,
        any_layout_is_unpacked,
        embeddings_agree,
        additions_and_norms_agree,
        heads_and_caches_agree,
        activations_are_exact,
        logits_of_the_last_token_agree,
        whole_prompts_agree,
    )
}


def _assert_same_heads(spec: ModelSpec, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal, but for what fp32 noise tipped over to the next bf16, or was rounded once more in between."""
    assert actual.shape == expected.shape
    actual, expected = actual.float(), expected.float()
    if spec.qk_norm is not None and spec.qk_norm.scope is QkNormScope.PROJECTION:
        assert relative_error(actual, expected) < 2**-8
        return
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-5)
    assert float((actual != expected).float().mean()) < 0.02
