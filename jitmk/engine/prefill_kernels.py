"""Prefill on a GPU from the packed weights: a few kernels of our own between the matrix products of torch.

A layer takes 13 launches: four matrices are unpacked and multiplied (8), queries and keys are rotated in place while
the cache is filled (1), attention (1), each residual addition with the norm behind it (2), the activation (1).
"""

from __future__ import annotations

from typing import Protocol

import torch

from jitmk.codegen.prefill import PREFILL_KERNELS
from jitmk.cuda.device import Device
from jitmk.cuda.launch import Launcher
from jitmk.cuda.module import Module
from jitmk.engine.arena import WeightArena
from jitmk.engine.kv_cache import KvCache
from jitmk.engine.prefill_ops import Block, Observer, TorchOps, ignore
from jitmk.engine.rope_tables import Rotation
from jitmk.model.spec import ModelSpec, QkNormScope
from jitmk.program.packing import UNIT_ROWS
from jitmk.program.weights import Matrix


class Kernels(Protocol):
    """The kernels of `codegen/prefill.py`, ready to launch."""

    def launch(self, name: str, **fields: float) -> None:
        """Launches a kernel; `fields` is its whole parameter, with pointers as integers."""


class DeviceKernels:
    """The kernels of a model on a GPU. They run on torch's current stream.

    Args:
        gpu: the GPU.
        spec: the model.
        cubin: `render_prefill(spec)`, compiled for the GPU.
    """

    def __init__(self, gpu: Device, spec: ModelSpec, cubin: bytes) -> None:
        self._device = torch.device("cuda", gpu.index)
        self._module = Module(gpu, cubin, gpu.arch.name)
        self._launchers: dict[str, Launcher] = {}
        for name, kernel in PREFILL_KERNELS.items():
            entry, threads = self._module.kernel(name), kernel.threads(spec)
            # As many CTAs as fit: each takes work until there is none.
            blocks = entry.residency(threads, 0).blocks
            self._launchers[name] = Launcher(
                entry, kernel.structure(), blocks=blocks, threads=threads, cooperative=False
            )

    def launch(self, name: str, **fields: float) -> None:
        """As `Kernels.launch`."""
        launcher = self._launchers[name]
        for field, value in fields.items():
            setattr(launcher.parameters, field, value)
        launcher.launch(torch.cuda.current_stream(self._device).cuda_stream)

    def close(self) -> None:
        """Unloads the kernels, which must not be running any more."""
        self._launchers.clear()
        self._module.close()


class KernelOps(TorchOps):
    """Implements `PrefillOps`; what is not worth a kernel of its own stays in torch.

    Args:
        spec: the model.
        arena: its packed weights.
        cache: its KV cache, on the same device.
        kernels: its kernels.
    """

    def __init__(self, spec: ModelSpec, arena: WeightArena, cache: KvCache, kernels: Kernels) -> None:
        super().__init__(spec, arena, cache)
        self._arena = arena
        self._tiles = cache.tensor
        self._kernels = kernels

    def embed(self, ids: torch.Tensor, start: int) -> torch.Tensor:
        """As `PrefillOps.embed`."""
        matrices = self._arena.plan.matrices
        table = matrices.get("embedding", matrices["lm_head"])
        positions = matrices.get("position_embedding")
        residual = torch.empty((len(ids), self._spec.hidden_size), device=ids.device)
        self._kernels.launch(
            "jitmk_embed",
            ids=ids.data_ptr(),
            table=self._address(table),
            positions=0 if positions is None else self._address(positions),
            residual=residual.data_ptr(),
            rows=len(ids),
            start=start,
            vocabulary=table.layout.rows,
            scale=self._spec.embedding_scale,
            blocks=table.layout.blocks,
            chunks=table.layout.chunks if table.packed else 0,
        )
        return residual

    def add(self, residual: torch.Tensor, block: Block) -> None:
        """As `PrefillOps.add`."""
        self._add_norm(residual, block, None, None)

    def add_norm(self, residual: torch.Tensor, block: Block | None, norm: str | None) -> torch.Tensor:
        """As `PrefillOps.add_norm`."""
        normed = torch.empty(residual.shape, dtype=torch.bfloat16, device=residual.device)
        self._add_norm(residual, block, norm, normed)
        return normed

    def _add_norm(
        self, residual: torch.Tensor, block: Block | None, norm: str | None, output: torch.Tensor | None
    ) -> None:
        weight, bias = self._norm_addresses(norm)
        post_weight, post_bias = self._norm_addresses(None if block is None else block.post_norm)
        self._kernels.launch(
            "jitmk_add_norm",
            residual=residual.data_ptr(),
            block=0 if block is None else block.output.data_ptr(),
            post_weight=post_weight,
            post_bias=post_bias,
            weight=weight,
            bias=bias,
            output=0 if output is None else output.data_ptr(),
            rows=len(residual),
            scale=self._spec.residual_scale,
            eps=self._spec.norm.eps,
        )

    def finish_heads(
        self, layer: int, qkv: torch.Tensor, rotation: Rotation | None, start: int, observe: Observer = ignore
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `PrefillOps.finish_heads`, in place."""
        if rotation is not None and rotation[0].shape[1] % 2:
            return super().finish_heads(layer, qkv, rotation, start, observe)  # the kernel turns two pairs at a time
        spec, prefix = self._spec, f"layers.{layer}."
        heads = qkv.view(len(qkv), -1, spec.head_dim)
        queries, keys, values = torch.split(heads, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        norm = spec.qk_norm
        if norm is not None and norm.scope is QkNormScope.PROJECTION:
            for part, name in ((queries, "q_norm"), (keys, "k_norm")):
                part.copy_(self._qk_norm(part.float(), prefix + name))
        in_kernel = norm is not None and norm.scope is not QkNormScope.PROJECTION
        tiles = self._tiles[layer, 0]
        cos, sin = (0, 0) if rotation is None else (table.data_ptr() for table in rotation)
        self._kernels.launch(
            "jitmk_heads",
            qkv=qkv.data_ptr(),
            cos=cos,
            sin=sin,
            q_norm=self._vector_address(prefix + "q_norm") if in_kernel else 0,
            k_norm=self._vector_address(prefix + "k_norm") if in_kernel else 0,
            cache=tiles.data_ptr(),
            head_stride=tiles.stride(0),
            rows=len(qkv),
            start=start,
            half=0 if rotation is None else rotation[0].shape[1],
            eps=norm.eps if norm is not None else 0.0,
        )
        if start == 0:  # what the cache holds now is what lies here in rows
            return queries.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1)
        return queries.transpose(0, 1), *self._cache.read(layer, start + len(qkv))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """As `PrefillOps.activate`."""
        hidden = torch.empty((len(x), self._spec.intermediate_size), dtype=torch.bfloat16, device=x.device)
        self._kernels.launch("jitmk_activate", input=x.data_ptr(), output=hidden.data_ptr(), pieces=hidden.numel() // 8)
        return hidden

    def logits(self, residual: torch.Tensor, out: torch.Tensor) -> None:
        """As `PrefillOps.logits`; of one token, straight from the packed LM head."""
        if len(residual) > 1 or out.device != residual.device:
            super().logits(residual, out)
            return
        normed = self._norm(residual, "final_norm")
        head = self._arena.plan.matrices["lm_head"]
        self._kernels.launch(
            "jitmk_logits",
            head=self._address(head),
            input=normed.data_ptr(),
            logits=out.data_ptr(),
            vocabulary=head.layout.rows,
            columns=head.layout.columns,
            blocks=head.layout.blocks,
            chunks=head.layout.chunks,
        )
        self._finish_logits(out)

    def _matrix(self, name: str) -> torch.Tensor:
        matrix = self._arena.plan.matrices[name]
        return self._unpacked(matrix, 0, matrix.layout.rows)

    def _head_rows(self, begin: int, end: int) -> torch.Tensor:
        return self._unpacked(self._arena.plan.matrices["lm_head"], begin, end).float()

    def _unpacked(self, matrix: Matrix, begin: int, end: int) -> torch.Tensor:
        """Rows of a packed matrix, bf16 [end - begin, columns], in memory of their own; `begin` is a multiple of 8."""
        layout = matrix.layout
        rows = torch.empty((end - begin, layout.columns), dtype=torch.bfloat16, device=self.device)
        self._kernels.launch(
            "jitmk_unpack",
            packed=self._address(matrix) + begin // UNIT_ROWS * layout.unit_bytes,
            to=rows.data_ptr(),
            rows=end - begin,
            columns=layout.columns,
            blocks=layout.blocks,
            chunks=layout.chunks,
        )
        return rows

    def _norm_addresses(self, name: str | None) -> tuple[int, int]:
        """Of a norm's weight and bias; 0 for what there is not."""
        if name is None:
            return 0, 0
        return self._vector_address(name), self._vector_address(f"{name}_bias") if self._spec.norm.bias else 0

    def _vector_address(self, name: str) -> int:
        return self._arena.constants.data_ptr() + 4 * self._arena.plan.vectors[name].offset

    def _address(self, matrix: Matrix) -> int:
        return self._arena.weights.data_ptr() + matrix.offset
