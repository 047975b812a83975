"""Lowering: a ModelSpec becomes the phases of one decode step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jitmk.errors import ConfigError
from jitmk.model.spec import ModelSpec, NormKind
from jitmk.program.attention_lowering import ProjectionInput, lower_attention
from jitmk.program.builder import ProgramBuilder
from jitmk.program.chunks import chunk_limit
from jitmk.program.configs import (
    ELEMENTWISE_VALUES,
    ActivateConfig,
    AddConfig,
    EmbedConfig,
    Epilogue,
    GatedActivateConfig,
    MatvecConfig,
    NormConfig,
    Prologue,
    ResidualAddConfig,
    ResidualNormAddConfig,
    SampleConfig,
)
from jitmk.program.fusion import Fusion
from jitmk.program.isa import Opcode
from jitmk.program.packing import UNIT_ROWS, ceil_div
from jitmk.program.program import Buffer, BufferKind, Program, word_spread

POLLED_COPIES = 2
"""Copies of a vector that every SM polls (measured: one copy costs 3 percent of a step, four gain nothing)."""

_PROLOGUES = {NormKind.RMS: Prologue.RMS, NormKind.LAYER: Prologue.LAYER}


def lower(spec: ModelSpec, splits: int = 1, tokens: int = 1, fused: bool | Fusion = True) -> Program:
    """The program of one decode step.

    Args:
        spec: the model.
        splits: parts into which attention splits the context; the projection behind it or a reduce phase merges them.
        tokens: sequences in the batch; 1 is what the device code runs today.
        fused: whether parts are fused where they can be; a `Fusion` says it part by part.

    Raises:
        ConfigError: splits or tokens out of range.
    """
    if tokens != 1:
        raise ConfigError(f"a batch of {tokens} sequences is not supported; the batch is 1")
    if splits < 1:
        raise ConfigError(f"splits = {splits}; attention needs at least one")
    builder = ProgramBuilder(tokens, word_spread(spec.hidden_size))
    return _Lowering(spec, Fusion.of(spec, fused), builder, splits, chunk_limit(spec)).program()


@dataclass(frozen=True)
class _Residual:
    """The residual stream between two blocks.

    Attributes:
        sum: fp32.
        input: bf16 of it, which the next norm or projection reads; None where nobody does.
        pending: a block's output that is still to be normed and added, with the name of that norm.
    """

    sum: Buffer
    input: Buffer | None = None
    pending: tuple[Buffer, str] | None = None


@dataclass(frozen=True)
class _Lowering:
    spec: ModelSpec
    fusion: Fusion
    b: ProgramBuilder
    splits: int
    chunk_limit: int

    def program(self) -> Program:
        residual = self._embed()
        for layer in range(self.spec.num_layers):
            residual = (self._parallel if self.spec.parallel else self._sequential)(layer, residual)
        self._head(residual)
        return self.b.finish(self.splits)

    @property
    def _residual_copies(self) -> int:
        """A fused post-norm reads the whole residual on every SM; other epilogues only rows of it."""
        return POLLED_COPIES if self.spec.post_norm and self.fusion.post_norm else 1

    def _embed(self) -> _Residual:
        spec = self.spec
        residual = self._new_residual("embed", POLLED_COPIES)
        assert residual.input is not None
        matrices = {"table": "lm_head" if spec.tied_embeddings else "embedding"}
        if spec.learned_positions:
            matrices["positions"] = "position_embedding"
        config = EmbedConfig(
            spec.vocab_size,
            spec.hidden_size,
            spec.tied_embeddings,
            residual.input.copies,
            residual.sum.copies,
            spec.embedding_scale,
            spec.learned_positions,
            self.chunk_limit,
        )
        buffers = {"output": residual.input, "residual_out": residual.sum}
        units = ceil_div(spec.hidden_size, UNIT_ROWS)
        self.b.phase("embed", "embed", Opcode.EMBED, config, units, buffers, matrices=matrices)
        return residual

    def _sequential(self, layer: int, residual: _Residual) -> _Residual:
        qkv, residual = self._qkv(layer, residual)
        attention = self._attention(layer, qkv)
        residual = self._block_end(layer, "attention", "o_proj", attention, residual)
        hidden, residual = self._gate_up(layer, residual, "mlp_norm")
        hidden = self._activated(layer, hidden)
        return self._block_end(layer, "mlp", "down", ProjectionInput(hidden), residual)

    def _parallel(self, layer: int, residual: _Residual) -> _Residual:
        prefix = f"layers.{layer}."
        source, norm = residual, "attention_norm"
        if self.spec.pre_norm and not self.fusion.norm:
            # One norm for both, so one phase.
            source, norm = _Residual(residual.sum, self._norm(layer, norm, residual)), ""
        qkv, _ = self._qkv(layer, source, norm)
        hidden = self._activated(layer, self._gate_up(layer, source, norm)[0])
        attention = self._attention(layer, qkv)
        if self.spec.post_norm or self.fusion.residual:
            residual = self._block_end(layer, "attention", "o_proj", attention, residual, last=False)
            return self._block_end(layer, "mlp", "down", ProjectionInput(hidden), residual)
        parts = self._stored(layer, "o_proj", attention), self._stored(layer, "down", ProjectionInput(hidden))
        both = self.b.bf16(prefix + "block_add.output", self.spec.hidden_size)
        config = AddConfig(self.spec.hidden_size, both.copies)
        buffers = {"input": parts[0], "other": parts[1], "output": both}
        self.b.phase(prefix + "block_add", "add", Opcode.ADD, config, self._pieces, buffers, layer=layer)
        return self._residual_add(layer, "mlp", both, residual)

    def _head(self, residual: _Residual) -> None:
        spec = self.spec
        candidates = self.b.buffer("lm_head.output", BufferKind.CANDIDATE, spec.vocab_size)
        config = MatvecConfig(
            spec.vocab_size,
            spec.hidden_size,
            Epilogue.LOGITS,
            scale=spec.logit_scale,
            soft_cap=spec.logit_soft_cap,
            output_copies=candidates.copies,
        )
        self._read_residual(None, "lm_head", residual, "final_norm", config, candidates)
        self.b.phase("sample", "sample", Opcode.SAMPLE, SampleConfig(spec.vocab_size), 1, {"input": candidates})

    def _qkv(self, layer: int, residual: _Residual, norm: str = "attention_norm") -> tuple[Buffer, _Residual]:
        """The projection's output, and the residual, of which nothing is pending any more."""
        spec = self.spec
        # A head's q, k and v are polled by the few SMs that attend with it.
        qkv = self.b.bf16(f"layers.{layer}.qkv.output", spec.qkv_rows)
        config = MatvecConfig(spec.qkv_rows, spec.hidden_size, Epilogue.STORE, bias=spec.qkv_bias)
        return qkv, self._read_residual(layer, "qkv", residual, norm, config, qkv)

    def _attention(self, layer: int, qkv: Buffer) -> ProjectionInput:
        return lower_attention(self.b, self.spec, self.fusion, layer, self.splits, qkv, POLLED_COPIES)

    def _gate_up(self, layer: int, residual: _Residual, norm: str) -> tuple[Buffer, _Residual]:
        """Gate and up, or just up, activated if that is fused; and the residual, of which nothing is pending."""
        spec, fused = self.spec, self.fusion.activation
        name = "gate_up" if spec.gated else "up"
        config = MatvecConfig(spec.gate_up_rows, spec.hidden_size, Epilogue.STORE, bias=spec.mlp_bias)
        if fused:
            epilogue = Epilogue.GATED if spec.gated else Epilogue.ACTIVATED
            config = replace(config, epilogue=epilogue, activation=spec.activation, output_copies=POLLED_COPIES)
        hidden = self.b.bf16(
            f"layers.{layer}.{name}.output",
            spec.intermediate_size if fused else spec.gate_up_rows,
            config.output_copies,
        )
        return hidden, self._read_residual(layer, name, residual, norm, config, hidden)

    def _activated(self, layer: int, hidden: Buffer) -> Buffer:
        if self.fusion.activation:
            return hidden
        spec, name = self.spec, f"layers.{layer}.activation"
        output = self.b.bf16(name + ".output", spec.intermediate_size, POLLED_COPIES)
        kind = GatedActivateConfig if spec.gated else ActivateConfig
        opcode = Opcode.GATED_ACTIVATE if spec.gated else Opcode.ACTIVATE
        config = kind(output.values, spec.activation, output.copies)
        units = ceil_div(output.values, ELEMENTWISE_VALUES)
        self.b.phase(name, opcode.value, opcode, config, units, {"input": hidden, "output": output}, layer=layer)
        return output

    def _read_residual(
        self, layer: int | None, name: str, residual: _Residual, norm: str, config: MatvecConfig, output: Buffer
    ) -> _Residual:
        """A projection of the residual, through what is pending and through a norm (`norm` empty: through none).

        Returns the residual with what was pending. Behind the last block nobody needs that, and it is not published.
        """
        spec = self.spec
        normed = bool(norm) and (spec.pre_norm or layer is None)
        vectors: dict[str, str] = {}
        buffers = {"output": output}
        after = residual
        if residual.pending is not None:
            buffers["input"], post = residual.pending
            buffers["residual_in"] = residual.sum
            if layer is not None:
                after = self._new_residual(post.removesuffix("_post_norm") + "_add", 0)
                buffers["residual_out"] = after.sum
            vectors |= self._norm_vectors(post, "post_norm")
            config = replace(
                config,
                norm_eps=spec.norm.eps,
                post=spec.norm.kind,
                post_bias=spec.norm.bias,
                post_scale=spec.residual_scale,
                post_sum=layer is not None,
                residual_copies=residual.sum.copies,
            )
        elif normed and not self.fusion.norm:
            buffers["input"], normed = self._norm(layer, norm, residual), False
        else:
            assert residual.input is not None
            buffers["input"] = residual.input
        if normed:
            vectors |= self._norm_vectors(norm if layer is None else f"layers.{layer}.{norm}", "norm")
            prologue = _PROLOGUES[spec.norm.kind]
            config = replace(config, prologue=prologue, norm_eps=spec.norm.eps, norm_bias=spec.norm.bias)
        self._matvec(layer, name, config, buffers, vectors)
        return after

    def _block_end(
        self, layer: int, block: str, name: str, x: ProjectionInput, residual: _Residual, *, last: bool = True
    ) -> _Residual:
        """The last projection of a block, and the residual with its result; not `last`: nobody will read its bf16."""
        copies = POLLED_COPIES if last else 0
        if self.spec.post_norm:
            y, norm = self._stored(layer, name, x), f"layers.{layer}.{block}_post_norm"
            if self.fusion.post_norm:
                return _Residual(residual.sum, pending=(y, norm))
            return self._residual_norm_add(layer, block, y, norm, residual, copies)
        if not self.fusion.residual:
            return self._residual_add(layer, block, self._stored(layer, name, x), residual)
        after = self._new_residual(f"layers.{layer}.{name}", copies)
        config = replace(
            self._block_end_config(name, x),
            epilogue=Epilogue.RESIDUAL,
            scale=self.spec.residual_scale,
            output_copies=copies,
        )
        self._matvec(layer, name, config, self._sum_buffers(x.values, residual, after) | x.buffers, {})
        return after

    def _stored(self, layer: int, name: str, x: ProjectionInput) -> Buffer:
        """The last projection of a block, by itself."""
        copies = POLLED_COPIES if self.spec.post_norm and self.fusion.post_norm else 1
        output = self.b.bf16(f"layers.{layer}.{name}.output", self.spec.hidden_size, copies)
        config = replace(self._block_end_config(name, x), output_copies=copies)
        self._matvec(layer, name, config, x.buffers | {"output": output}, {})
        return output

    def _block_end_config(self, name: str, x: ProjectionInput) -> MatvecConfig:
        spec = self.spec
        bias = spec.o_bias if name == "o_proj" else spec.mlp_bias
        if x.lse is None:
            return MatvecConfig(spec.hidden_size, x.values.values, Epilogue.STORE, bias=bias)
        return MatvecConfig(
            spec.hidden_size, spec.attention_size, Epilogue.STORE, Prologue.MERGE, heads=spec.num_heads, bias=bias
        )

    def _matvec(
        self, layer: int | None, name: str, config: MatvecConfig, buffers: dict[str, Buffer], vectors: dict[str, str]
    ) -> None:
        full, x = name if layer is None else f"layers.{layer}.{name}", buffers["input"]
        config = replace(config, input_copies=x.copies, input_spread=x.spread, chunk_limit=self.chunk_limit)
        # SMs have one unit of the projections that add to the residual: there all warps together are faster.
        config = replace(
            config,
            own_units=config.can_own_units and config.epilogue is not Epilogue.RESIDUAL,
            behind_own_units=self._has_own_units(x),
        )
        if config.bias:
            vectors = vectors | {"bias": full + "_bias"}
        self.b.phase(
            full,
            name if config.prologue is not Prologue.MERGE else f"{name}_merge",
            Opcode.MATVEC,
            config,
            config.layout.units,
            buffers,
            layer=layer,
            matrices={"weights": full},
            vectors=vectors,
            splits=self.splits if config.prologue is Prologue.MERGE else 1,
        )

    def _has_own_units(self, written: Buffer) -> bool:
        """Whether a matvec wrote the buffer of which each warp has units of its own."""
        writer = next(phase for phase in reversed(self.b.phases) if phase.buffers.get("output") is written)
        return isinstance(writer.variant.config, MatvecConfig) and writer.variant.config.own_units

    def _norm(self, layer: int | None, norm: str, residual: _Residual) -> Buffer:
        """A norm of the residual as a phase of its own."""
        spec = self.spec
        assert residual.input is not None
        name = norm if layer is None else f"layers.{layer}.{norm}"
        output = self.b.bf16(name + ".output", spec.hidden_size, POLLED_COPIES)
        config = NormConfig(
            spec.norm.kind, 1, spec.hidden_size, spec.norm.eps, spec.norm.bias, True, output_copies=output.copies
        )
        buffers, vectors = {"input": residual.input, "output": output}, self._norm_vectors(name, "norm")
        self.b.phase(name, "norm", Opcode.NORM, config, 1, buffers, layer=layer, vectors=vectors, numbers={"first": 0})
        return output

    def _norm_vectors(self, name: str, operand: str) -> dict[str, str]:
        """Weight and bias of a norm, as operands."""
        return {operand: name} | ({operand + "_bias": name + "_bias"} if self.spec.norm.bias else {})

    def _residual_norm_add(
        self, layer: int, block: str, y: Buffer, norm: str, residual: _Residual, copies: int
    ) -> _Residual:
        spec, name = self.spec, f"layers.{layer}.{block}_add"
        after = self._new_residual(name, copies)
        config = ResidualNormAddConfig(
            spec.hidden_size,
            spec.norm.kind,
            spec.norm.eps,
            spec.norm.bias,
            spec.residual_scale,
            copies,
            after.sum.copies,
        )
        opcode, vectors = Opcode.RESIDUAL_NORM_ADD, self._norm_vectors(norm, "norm")
        buffers = self._sum_buffers(y, residual, after)
        self.b.phase(name, opcode.value, opcode, config, self._pieces, buffers, layer=layer, vectors=vectors)
        return after

    def _residual_add(self, layer: int, block: str, y: Buffer, residual: _Residual) -> _Residual:
        name = f"layers.{layer}.{block}_add"
        after = self._new_residual(name, POLLED_COPIES)
        config = ResidualAddConfig(y.values, self.spec.residual_scale, POLLED_COPIES, after.sum.copies)
        opcode, buffers = Opcode.RESIDUAL_ADD, self._sum_buffers(y, residual, after)
        self.b.phase(name, opcode.value, opcode, config, self._pieces, buffers, layer=layer)
        return after

    def _sum_buffers(self, y: Buffer, residual: _Residual, after: _Residual) -> dict[str, Buffer]:
        buffers = {"input": y, "residual_in": residual.sum, "residual_out": after.sum}
        return buffers if after.input is None else buffers | {"output": after.input}

    def _new_residual(self, writer: str, copies: int) -> _Residual:
        """Buffers of a residual; `copies` of its bf16, 0 for none."""
        size = self.spec.hidden_size
        total = self.b.fp32(f"{writer}.residual", size, self._residual_copies)
        return _Residual(total, self.b.bf16(f"{writer}.output", size, copies) if copies else None)

    @property
    def _pieces(self) -> int:
        """Units of the opcodes that take a residual value by value."""
        return ceil_div(self.spec.hidden_size, ELEMENTWISE_VALUES)
