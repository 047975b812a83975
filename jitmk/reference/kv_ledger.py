"""The KV cache of the schedule machine: who appended what when, and who may know of it."""

from __future__ import annotations

import numpy as np
import torch

from jitmk.model.spec import ModelSpec
from jitmk.reference.cache import PlainKvCache
from jitmk.reference.words import RaceError

_UNWRITTEN = -1
_BEFORE_LAUNCH = 0


class KvLedger:
    """A cache with a date for every position of every head, and the flags by which appends are released.

    Attributes:
        cache: keys and values.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.cache = PlainKvCache(spec)
        self._shape = (spec.num_layers, spec.num_kv_heads)
        self._epoch = np.empty((*self._shape, 0), dtype=np.int64)
        self._released = np.zeros(self._shape, dtype=np.int64)

    def begin_launch(self, position: int, steps: int) -> None:
        """Forgets what lies at `position` and after it; everyone knows what lies before."""
        self._epoch = np.full((*self._shape, position + steps), _UNWRITTEN, dtype=np.int64)
        self._epoch[:, :, :position] = _BEFORE_LAUNCH
        nothing = torch.full((self._shape[1], steps, self.cache.head_dim), torch.nan)
        for layer in range(self._shape[0]):
            self.cache.write(layer, position, nothing, nothing)

    def append(
        self, layer: int, kv_head: int, position: int, key: torch.Tensor, value: torch.Tensor, epoch: int, writer: str
    ) -> None:
        """Stores a position once. Raises RaceError where it is there already."""
        if self._epoch[layer, kv_head, position] != _UNWRITTEN:
            raise RaceError(
                f"{writer} appends position {position} to head {kv_head} of layer {layer} in epoch {epoch}, but epoch "
                f"{self._epoch[layer, kv_head, position]} did so already"
            )
        self._epoch[layer, kv_head, position] = epoch
        self.cache.write_head(layer, kv_head, position, key, value)

    def release(self, layer: int, kv_head: int, epoch: int) -> None:
        """Lets others know that the append of an epoch is done."""
        self._released[layer, kv_head] = epoch

    def is_released(self, layer: int, kv_head: int, epoch: int) -> bool:
        """Whether the append of an epoch is known to be done."""
        return bool(self._released[layer, kv_head] >= epoch)

    def read(self, layer: int, kv_head: int, positions: range, reader: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of keys and values of old positions, each [positions, head_dim].

        Raises:
            RaceError: a position is not there yet, or nothing tells its reader that it is.
        """
        epochs = self._epoch[layer, kv_head, positions.start : positions.stop]
        bad = (epochs == _UNWRITTEN) | (epochs > self._released[layer, kv_head])
        if bad.any():
            raise RaceError(
                f"{reader} reads positions {positions.start} to {positions.stop - 1} of head {kv_head} of layer "
                f"{layer}, but position {positions.start + int(bad.argmax())} has not been released yet"
            )
        keys, values = self.cache.read_head(layer, kv_head, positions.start, positions.stop)
        return keys.clone(), values.clone()
