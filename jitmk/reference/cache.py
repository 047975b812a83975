"""The KV cache of the CPU machines: plain tensors, no tiles."""

from __future__ import annotations

import torch

from jitmk.model.spec import ModelSpec

_FIRST_CAPACITY = 64


class PlainKvCache:
    """Keys (rotated) and values of every position so far; fp32 that hold bf16 values. Grows as it is written."""

    def __init__(self, spec: ModelSpec, tokens: int = 1) -> None:
        self._shape = (spec.num_layers, tokens, spec.num_kv_heads, spec.head_dim)
        self._keys = self._values = self._empty(0)

    @property
    def capacity(self) -> int:
        """Positions for which there is room without growing."""
        return self._keys.shape[3]

    @property
    def head_dim(self) -> int:
        """Values of a key, and of a value."""
        return self._shape[3]

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor, token: int = 0) -> None:
        """Stores positions from `start` on, rounded to bf16; keys and values are [kv_heads, positions, head_dim]."""
        end = start + keys.shape[1]
        self._reserve(end)
        self._keys[layer, token, :, start:end] = keys.to(torch.bfloat16)
        self._values[layer, token, :, start:end] = values.to(torch.bfloat16)

    def write_head(
        self, layer: int, kv_head: int, position: int, key: torch.Tensor, value: torch.Tensor, token: int = 0
    ) -> None:
        """Stores one position of one head; key and value are [head_dim]."""
        self._reserve(position + 1)
        self._keys[layer, token, kv_head, position] = key.to(torch.bfloat16)
        self._values[layer, token, kv_head, position] = value.to(torch.bfloat16)

    def read(self, layer: int, positions: int, token: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first positions, views [kv_heads, positions, head_dim]."""
        return self._keys[layer, token, :, :positions], self._values[layer, token, :, :positions]

    def read_head(
        self, layer: int, kv_head: int, begin: int, end: int, token: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of positions [begin, end) of one head, views [end - begin, head_dim]."""
        return self._keys[layer, token, kv_head, begin:end], self._values[layer, token, kv_head, begin:end]

    def clear(self) -> None:
        """Forgets every position and frees the memory."""
        self._keys = self._values = self._empty(0)

    def _empty(self, capacity: int) -> torch.Tensor:
        layers, tokens, kv_heads, head_dim = self._shape
        return torch.zeros((layers, tokens, kv_heads, capacity, head_dim))

    def _reserve(self, positions: int) -> None:
        if positions <= self.capacity:
            return
        before, capacity = self.capacity, max(_FIRST_CAPACITY, self.capacity)
        while capacity < positions:
            capacity *= 2
        keys, values = self._empty(capacity), self._empty(capacity)
        keys[:, :, :, :before], values[:, :, :, :before] = self._keys, self._values
        self._keys, self._values = keys, values
