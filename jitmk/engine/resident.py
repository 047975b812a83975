"""Weights in rows, as plain torch wants them: what the torch backend keeps instead of the packed arena."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import torch

from jitmk.engine.loading import load_vector, matrix_slabs, progress_bar
from jitmk.engine.memory import require_memory
from jitmk.engine.prefill import compute_dtype
from jitmk.model.checkpoint import WeightSource
from jitmk.program.weights import WeightPlan


class ResidentWeights:
    """Every matrix in rows: bf16 on a GPU, fp32 (of the values rounded to bf16) on a CPU. Implements `Weights`."""

    def __init__(self, plan: WeightPlan, device: torch.device) -> None:
        self._device = device
        self._dtype = compute_dtype(device)
        self._matrices = {
            name: torch.empty((matrix.layout.rows, matrix.layout.columns), dtype=self._dtype, device=device)
            for name, matrix in plan.matrices.items()
        }
        self._vectors = {
            name: torch.empty(vector.values, dtype=torch.float32, device=device)
            for name, vector in plan.vectors.items()
        }

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def compute_dtype(self) -> torch.dtype:
        return self._dtype

    def matrix(self, name: str) -> torch.Tensor:
        """A matrix, not a copy, `compute_dtype` [rows, columns]."""
        return self._matrices[name]

    def head_rows(self, begin: int, end: int) -> torch.Tensor:
        """Rows of the LM head, fp32 [end - begin, hidden_size]."""
        return self._matrices["lm_head"][begin:end].float()

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, fp32 [n, hidden_size], for ids int64 [n]."""
        table = self._matrices.get("embedding", self._matrices["lm_head"])
        return table[ids].float()

    def position_embedding(self, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the learned positions, fp32 [n, hidden_size], for positions int64 [n]."""
        return self._matrices["position_embedding"][positions].float()

    def vector(self, name: str) -> torch.Tensor:
        """A constant vector, not a copy, fp32 [values]."""
        return self._vectors[name]


def load_resident(
    plan: WeightPlan,
    source: WeightSource,
    device: torch.device,
    *,
    also_needed: Mapping[str, int] | None = None,
    progress: bool = True,
) -> ResidentWeights:
    """Reads every weight of a model into rows; arguments and errors as for `arena.load_weights`."""
    size = compute_dtype(device).itemsize
    needed = sum(matrix.layout.rows * matrix.layout.columns * size for matrix in plan.matrices.values())
    needed += sum(4 * vector.values for vector in plan.vectors.values())
    require_memory(device, {"weights": needed, **(also_needed or {})})
    weights = ResidentWeights(plan, device)
    with progress_bar("loading weights", needed, progress) as bar:
        for vector in plan.vectors.values():
            weights.vector(vector.name).copy_(load_vector(source, vector, device))
            bar.update(4 * vector.values)
        with closing(matrix_slabs(source, plan.matrices.values(), device)) as slabs:
            for matrix, begin, rows in slabs:
                weights.matrix(matrix.name)[begin : begin + len(rows)] = rows
                bar.update(rows.numel() * size)
    return weights
