"""The packed weights of a live model: one arena of matrices, one of constant vectors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import torch

from jitmk.engine.loading import load_vector, matrix_slabs, progress_bar
from jitmk.engine.memory import require_memory
from jitmk.engine.prefill import compute_dtype
from jitmk.model.checkpoint import WeightSource
from jitmk.program.packing import UNIT_ROWS, pack, unpack
from jitmk.program.weights import Matrix, WeightPlan


class WeightArena:
    """The weights of a model as the megakernel reads them; the only copy on the device.

    Implements `prefill.Weights` by unpacking one matrix at a time.

    Attributes:
        plan: where everything lies.
        weights: bf16 [plan.arena_bytes / 2]; `Matrix.offset` counts its bytes.
        constants: fp32 [plan.constant_values]; `Vector.offset` counts its elements.
    """

    def __init__(self, plan: WeightPlan, device: torch.device) -> None:
        self.plan = plan
        self.weights = torch.zeros(plan.arena_bytes // 2, dtype=torch.bfloat16, device=device)
        self.constants = torch.zeros(plan.constant_values, dtype=torch.float32, device=device)

    @property
    def device(self) -> torch.device:
        return self.weights.device

    @property
    def compute_dtype(self) -> torch.dtype:
        return compute_dtype(self.device)

    def matrix(self, name: str) -> torch.Tensor:
        """A copy of a matrix in rows, `compute_dtype` [rows, columns]."""
        layout = self.plan.matrices[name].layout
        return self._rows(name, 0, layout.rows).to(self.compute_dtype)

    def head_rows(self, begin: int, end: int) -> torch.Tensor:
        """A copy of rows of the LM head, fp32 [end - begin, hidden_size]; `begin` is a multiple of 8."""
        return self._rows("lm_head", begin, end).float()

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, fp32 [n, hidden_size], for ids int64 [n]; tied ones come out of the packed head."""
        table = self.plan.matrices.get("embedding")
        if table is not None:
            return self._stored(table).view(table.layout.rows, table.layout.columns)[ids].float()
        head = self.plan.matrices["lm_head"]
        units = self._stored(head).view(head.layout.units, -1)[ids // UNIT_ROWS]
        layout = head.layout
        rows = unpack(units, len(ids) * UNIT_ROWS, layout.columns, chunk_limit=layout.chunk_limit)
        rows = rows.view(len(ids), UNIT_ROWS, -1)
        return rows[torch.arange(len(ids), device=ids.device), ids % UNIT_ROWS].float()

    def position_embedding(self, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the learned positions, fp32 [n, hidden_size], for positions int64 [n]."""
        table = self.plan.matrices["position_embedding"]
        return self._stored(table).view(table.layout.rows, table.layout.columns)[positions].float()

    def vector(self, name: str) -> torch.Tensor:
        """A view of a constant vector, fp32 [values]."""
        vector = self.plan.vectors[name]
        return self.constants[vector.offset : vector.offset + vector.values]

    def _stored(self, matrix: Matrix) -> torch.Tensor:
        """A view of a matrix as it lies in the arena, bf16 [elements]."""
        return self.weights[matrix.offset // 2 : (matrix.offset + matrix.nbytes) // 2]

    def _rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end) in bf16; `begin` is a multiple of 8."""
        matrix = self.plan.matrices[name]
        if not matrix.packed:
            return self._stored(matrix).view(matrix.layout.rows, matrix.layout.columns)[begin:end]
        units = self._stored(matrix).view(matrix.layout.units, -1)[begin // UNIT_ROWS : -(-end // UNIT_ROWS)]
        return unpack(units, end - begin, matrix.layout.columns, chunk_limit=matrix.layout.chunk_limit)

    def _fill(self, matrix: Matrix, begin: int, rows: torch.Tensor) -> None:
        """Stores rows of a matrix, in whole units but for the last."""
        if matrix.packed:
            units = self._stored(matrix).view(matrix.layout.units, -1)
            limit = matrix.layout.chunk_limit
            pack(rows, units[begin // UNIT_ROWS : -(-(begin + len(rows)) // UNIT_ROWS)], chunk_limit=limit)
        else:
            self._stored(matrix).view(matrix.layout.rows, -1)[begin : begin + len(rows)] = rows


def load_weights(
    plan: WeightPlan,
    source: WeightSource,
    device: torch.device,
    *,
    also_needed: Mapping[str, int] | None = None,
    progress: bool = True,
) -> WeightArena:
    """Reads, joins and packs every weight of a model.

    Beside the arenas it takes a few slabs of 32 MB of memory on the device, and a few on the host, whatever the size
    of the model. Weights that are not bf16 are rounded to it (vectors to fp32).

    Args:
        plan: where everything goes.
        source: the checkpoint.
        device: where the arenas will be.
        also_needed: bytes that the caller will allocate beside the weights, by what for ("KV cache", ...).
        progress: whether a load of more than a second shows a progress bar.

    Raises:
        DeviceMemoryError: weights and `also_needed` do not fit; nothing was read or allocated.
        CheckpointError: a tensor cannot be read, or is not finite in bf16.
    """
    weight_bytes = plan.arena_bytes + 4 * plan.constant_values
    require_memory(device, {"weights": weight_bytes, **(also_needed or {})})
    arena = WeightArena(plan, device)
    with progress_bar("loading and packing weights", weight_bytes, progress) as bar:
        for vector in plan.vectors.values():
            arena.vector(vector.name).copy_(load_vector(source, vector, device))
            bar.update(4 * vector.values)
        with closing(matrix_slabs(source, plan.matrices.values(), device)) as slabs:
            for matrix, begin, rows in slabs:
                arena._fill(matrix, begin, rows)
                bar.update(rows.numel() * 2)
    return arena
