"""The CPU machines without roundings to bf16: what is left is what a program computes, to the last digits of fp32."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from jitmk.reference import ops
from jitmk.reference.cache import PlainKvCache


class _ExactCache(PlainKvCache):
    def write_head(
        self, layer: int, kv_head: int, position: int, key: torch.Tensor, value: torch.Tensor, token: int = 0
    ) -> None:
        self._reserve(position + 1)
        self._keys[layer, token, kv_head, position] = key
        self._values[layer, token, kv_head, position] = value


@contextmanager
def without_roundings() -> Iterator[None]:
    """Opcodes and caches keep fp32 where they would round to bf16."""
    with pytest.MonkeyPatch.context() as patch:
        for found in pkgutil.iter_modules(ops.__path__):
            module = importlib.import_module(f"{ops.__name__}.{found.name}")
            if hasattr(module, "to_bf16"):
                patch.setattr(module, "to_bf16", lambda x: x.to(torch.float32))
        patch.setattr("jitmk.reference.machine.PlainKvCache", _ExactCache)
        yield
