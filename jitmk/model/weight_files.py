"""Which safetensors files make up a checkpoint."""

from __future__ import annotations

from pathlib import Path

from jitmk.errors import CheckpointError
from jitmk.model.files import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_FOREIGN = {
    "pickle": ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
    "GGUF": ("*.gguf",),
    "TensorFlow or Flax": ("*.h5", "*.msgpack"),
}


def weight_files(folder: Path) -> dict[Path, frozenset[str]]:
    """The files of a checkpoint, each with the tensors that the index says it holds.

    A single file has no index and promises nothing. As in transformers, it outranks an index.

    Raises:
        CheckpointError: there are no safetensors, a shard is missing, or the index is malformed or leads out of the
            folder.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists():
        return {single: frozenset()}
    if not index.exists():
        raise CheckpointError(_nothing_found(folder))
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map that says which file holds which tensor")
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CheckpointError(
                f"{index} says that tensor {tensor} is in {shard!r}: shards must be safetensors files of that folder"
            )
        shards.setdefault(shard, set()).add(tensor)
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files: {first_few(missing)}; download them again"
        )
    return {folder / shard: frozenset(tensors) for shard, tensors in sorted(shards.items())}


def _is_plain_name(shard: str) -> bool:
    """Whether a shard's name stays in its folder. (Not resolved: the Hub's cache keeps symbolic links in folders.)"""
    return shard.endswith(".safetensors") and not any(character in shard for character in "/\\\0")


def _nothing_found(folder: Path) -> str:
    begin = f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}"
    for kind, patterns in _FOREIGN.items():
        found = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
        if found:
            advice = (
                "jitmk never loads pickle, which can run code; convert it where you trust it, with transformers: "
                "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)"
            )
            return f"{begin}, only {kind} weights ({first_few(found)}): " + (
                advice if kind == "pickle" else "jitmk reads safetensors only"
            )
    if (folder / "adapter_model.safetensors").exists():
        return f"{begin}, only an adapter: merge it into its base model first"
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"{begin}; it does have {first_few(others)}, which no index explains"
    return (
        f"{begin}; if this was downloaded from the Hub, the model is there in another format only: jitmk reads "
        "safetensors, and never pickle (.bin, .pt)"
    )


def first_few(names: list[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest
