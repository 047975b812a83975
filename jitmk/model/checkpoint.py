"""Where weights come from: safetensors files, checked from their headers before anything is loaded, or a generator."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from jitmk.errors import CheckpointError
from jitmk.model.families.base import LoadedFamily, TensorRef
from jitmk.model.shard import DTYPES, Shard, StoredRows, StoredTensor
from jitmk.model.spec import HIDDEN_NORMS, QK_NORMS, ModelSpec, Role, WeightKey, weight_offset, weight_shapes
from jitmk.model.tensors import take
from jitmk.model.weight_files import first_few, weight_files


class WeightSource(Protocol):
    """Hands out the tensors of a model, one at a time."""

    @property
    def spec(self) -> ModelSpec:
        """The model."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together, as they are stored."""

    def tensor(self, key: WeightKey) -> torch.Tensor:
        """One tensor of `weight_shapes(spec)`, contiguous, bf16, fp16 or fp32, to be read only."""

    def stored_rows(self, key: WeightKey) -> StoredRows | None:
        """Where the same tensor lies in a file, for who wants to read it piece by piece; None if it does not so lie."""

    def close(self) -> None:
        """Lets go of files. Closing twice is harmless; tensors that were handed out stay valid."""


class Checkpoint:
    """The weights in a folder of safetensors: what is not asked for is not read.

    Make one with `open`; use it as a context manager or call `close`.
    """

    def __init__(self, family: LoadedFamily) -> None:
        self._family = family
        self._shards: list[Shard] = []
        self._stored: dict[str, StoredTensor] = {}

    @classmethod
    def open(cls, folder: Path, family: LoadedFamily) -> Checkpoint:
        """Opens the files and checks that every tensor of the model is there with the right shape and a known dtype.

        Tensors that the model has no use for are warned about, unless the family knows them to be harmless.

        Raises:
            CheckpointError: a file is missing, truncated or not safetensors, or a tensor missing or wrong; the message
                names it and its file.
        """
        files = weight_files(Path(folder))
        checkpoint = cls(family)
        try:
            for path, promised in files.items():
                shard = Shard.open(path)
                checkpoint._shards.append(shard)
                broken = sorted(promised - shard.tensors.keys())
                if broken:
                    raise CheckpointError(f"{path} lacks {first_few(broken)}, which the index says it holds")
                checkpoint._stored |= shard.tensors
            family = checkpoint._family = _renamed(family, checkpoint._stored)
            _check(family, checkpoint._stored, Path(folder))
        except CheckpointError:
            checkpoint.close()
            raise
        return checkpoint

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self._family.spec

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the model, as they are stored."""
        total = 0
        for key, shape in weight_shapes(self.spec).items():
            total += math.prod(shape) * DTYPES[self._stored[self._family.tensors[key].name].dtype].itemsize
        return total

    def tensor(self, key: WeightKey) -> torch.Tensor:
        """A tensor as it is stored; a view of the mapped file where nothing has to be moved. Do not write to it.

        Raises:
            KeyError: the model has no such tensor.
            CheckpointError: the checkpoint was closed.
        """
        ref = self._family.tensors[key]
        stored = self._find(ref)
        return take(stored.shard.mapped(stored.name), ref)

    def stored_rows(self, key: WeightKey) -> StoredRows | None:
        """Where a tensor's rows lie in its file; None where `tensor` has to put them, or what is in them, in order.

        Raises as `tensor` does.

        What is read from there takes no host memory but the buffer that it is read into, whereas pages of a mapping
        count as the process's own once they were touched.
        """
        ref = self._family.tensors[key]
        stored = self._find(ref)
        if ref.transpose or ref.row_order is not None:
            return None
        return stored.rows if ref.rows is None else stored.rows.slice(*ref.rows)

    def close(self) -> None:
        """Closes the files. Tensors that were handed out stay valid, since they hold their mapping."""
        shards, self._shards = self._shards, []
        for shard in shards:
            shard.close()

    def _find(self, ref: TensorRef) -> StoredTensor:
        if not self._shards:
            raise CheckpointError(f"tensor {ref.name} was asked for after the checkpoint was closed")
        return self._stored[ref.name]

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RandomCheckpoint:
    """Random weights that look the part, for benchmarks and tests: each tensor depends on the seed and its key alone.

    Matrices and embeddings are normal with a standard deviation of 1 / sqrt(columns), so that activations and logits
    keep the scale of 1 whatever the sizes; norms are 1 with a jitter of 0.1, biases 0.1 wide, so that leaving one out
    shows.

    Args:
        spec: the model.
        seed: any integer.
        dtype: of the tensors that are handed out: bf16, fp16 or fp32.
        device: where to generate. A GPU draws other numbers than the CPU from the same seed.
    """

    def __init__(
        self,
        spec: ModelSpec,
        seed: int = 0,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        self._spec = spec
        self._seed = seed
        self._dtype = dtype
        self._device = torch.device(device)
        self._shapes = weight_shapes(spec)

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self._spec

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return self._spec.parameters * self._dtype.itemsize

    def tensor(self, key: WeightKey) -> torch.Tensor:
        """A new tensor, the same at every call. Raises KeyError for one that the model does not have."""
        shape = self._shapes[key]
        digest = hashlib.blake2b(f"{self._seed} {key}".encode(), digest_size=8).digest()
        generator = torch.Generator(self._device).manual_seed(int.from_bytes(digest, "little") >> 1)
        values = torch.randn(shape, generator=generator, device=self._device)
        if key.role in HIDDEN_NORMS | QK_NORMS:
            values = values * 0.1 + (1 - weight_offset(self._spec, key.role))
        else:
            values *= shape[1] ** -0.5 if len(shape) == 2 else 0.1
        return values.to(self._dtype)

    def stored_rows(self, key: WeightKey) -> StoredRows | None:
        """None: there is no file."""
        return None

    def close(self) -> None:
        """Nothing to close."""


def stored_shapes(family: LoadedFamily) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a checkpoint of the family holds, by its name there."""
    refs = family.tensors
    return {
        refs[key].name: _stored_shape(family, refs[key], shape) for key, shape in weight_shapes(family.spec).items()
    }


def _renamed(family: LoadedFamily, stored: Mapping[str, StoredTensor]) -> LoadedFamily:
    """The family with the names of a checkpoint that was saved without the optional prefix, if it was."""
    prefix = family.optional_prefix
    if not prefix or any(name.startswith(prefix) for name in stored):
        return family
    tensors = {key: replace(ref, name=ref.name.removeprefix(prefix)) for key, ref in family.tensors.items()}
    return replace(family, tensors=tensors)


def _check(family: LoadedFamily, stored: dict[str, StoredTensor], folder: Path) -> None:
    """Checks every tensor of the model against the headers."""
    shapes = weight_shapes(family.spec)
    missing = sorted({family.tensors[key].name for key in shapes} - stored.keys())
    if missing:
        hint = ""
        if missing == [family.tensors[key].name for key in shapes if key.role is Role.LM_HEAD]:
            hint = "; if the model ties its LM head to the embedding, config.json must say tie_word_embeddings=true"
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors of the model: {first_few(missing)}{hint}")
    used = set()
    for key, shape in shapes.items():
        ref = family.tensors[key]
        tensor = stored[ref.name]
        expected = _stored_shape(family, ref, shape)
        if tensor.shape != expected:
            raise CheckpointError(
                f"tensor {ref.name} in {tensor.shard.path} has shape {list(tensor.shape)}, but by config.json it must "
                f"have {list(expected)}: the two do not belong together"
            )
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {ref.name} in {tensor.shard.path} has dtype {tensor.dtype}: jitmk reads {', '.join(DTYPES)}"
            )
        used.add(ref.name)
    harmless = [re.compile(pattern) for pattern in family.ignorable]
    extra = sorted(name for name in stored.keys() - used if not any(p.fullmatch(name) for p in harmless))
    if extra:
        warnings.warn(
            f"{folder} has {len(extra)} tensors that a {family.spec.family} model with this config.json has no use "
            f"for: {first_few(extra)}; they are ignored",
            stacklevel=3,
        )


def _stored_shape(family: LoadedFamily, ref: TensorRef, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the stored tensor must have for `ref` to yield one of `shape`."""
    if ref.stored_rows is not None:
        shape = (ref.stored_rows, *shape[1:])
    elif ref.rows is not None:
        # A tensor that holds several ends where the last of them does.
        parts = [other.rows for other in family.tensors.values() if other.name == ref.name and other.rows is not None]
        shape = (max(end for _, end in parts), *shape[1:])
    return shape[::-1] if ref.transpose else shape
