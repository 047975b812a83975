"""The weights of the CPU machines: the matrices and vectors of a WeightPlan, in rows, with the device's roundings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from jitmk.model.checkpoint import WeightSource
from jitmk.model.spec import ModelSpec, WeightKey
from jitmk.program.weights import Join, plan_weights
from jitmk.reference.ops.rounding import to_bf16


class StepWeights(Protocol):
    """A model's weights on the CPU by the names of `program/weights.py`."""

    def matrix(self, name: str) -> torch.Tensor:
        """A matrix, floating [rows, columns], bf16 values; the machines ask for it at every step, so without a copy."""

    def vector(self, name: str) -> torch.Tensor:
        """A constant vector, fp32 [values]."""

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, fp32 [n, hidden_size], for ids int64 [n]."""

    def position_embedding(self, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the learned positions, fp32 [n, hidden_size], for positions int64 [n]."""


class ReferenceWeights:
    """Takes each matrix from a checkpoint when it is first needed, and keeps it in fp32 (4 bytes a weight).

    Args:
        spec: the model.
        source: its tensors.
    """

    def __init__(self, spec: ModelSpec, source: WeightSource) -> None:
        self._plan = plan_weights(spec)
        self._source = source
        self._matrices: dict[str, torch.Tensor] = {}
        self._vectors: dict[str, torch.Tensor] = {}

    def matrix(self, name: str) -> torch.Tensor:
        """A matrix, fp32 [rows, columns], rounded to bf16. Raises CheckpointError as the source does."""
        if name not in self._matrices:
            matrix = self._plan.matrices[name]
            self._matrices[name] = self._join(matrix.keys, matrix.join, to_bf16)
        return self._matrices[name]

    def vector(self, name: str) -> torch.Tensor:
        """A constant vector, fp32 [values]."""
        if name not in self._vectors:
            vector = self._plan.vectors[name]
            self._vectors[name] = self._join(
                vector.keys, vector.join, lambda part: part.to(torch.float32).flatten() + vector.addend
            )
        return self._vectors[name]

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, fp32 [n, hidden_size], for ids int64 [n]."""
        return self.matrix("embedding" if "embedding" in self._plan.matrices else "lm_head")[ids]

    def position_embedding(self, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the learned positions, fp32 [n, hidden_size], for positions int64 [n]."""
        return self.matrix("position_embedding")[positions]

    def _join(
        self, keys: tuple[WeightKey, ...], join: Join, convert: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        parts = [convert(self._source.tensor(key)) for key in keys]
        if join is Join.INTERLEAVE:
            return torch.stack(parts, dim=1).flatten(0, 1)
        return parts[0] if len(parts) == 1 else torch.cat(parts)
