from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import loading
from benchmarks.loading import LoadRun, checkpoint_bytes, measure_load, split, warm_page_cache, write_checkpoint
from benchmarks.records import BenchmarkError
from benchmarks.shapes import CONFIGS
from jitmk.model.checkpoint import Checkpoint, RandomCheckpoint, stored_shapes
from jitmk.model.families import spec_from_config
from jitmk.model.weight_files import weight_files
from tests.support.checkpoints import TINY_OF

TINY = CONFIGS["llama-3.1-8b"] | {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}

RUN = LoadRun(
    stored=16_000_000_000,
    largest_shard=5_000_000_000,
    load=2.0,
    read=1.0,
    upload=0.4,
    pack=0.1,
    host_growth=500_000_000,
    packed=16_000_000_000,
    gpu_growth=16_160_000_000,
    first_token=2.25,
    programs=0.125,
    from_cache=True,
)


def test_shards_hold_what_fits() -> None:
    sizes = {"a": 4, "b": 6, "c": 1, "d": 25, "e": 9, "f": 1}
    assert split(sizes, 10) == [["a", "b"], ["c"], ["d"], ["e", "f"]]


@pytest.mark.parametrize(
    "config",
    # One matrix a tensor, matrices stacked in one, and matrices that are stored the other way round.
    [TINY, *({**TINY_OF[name], "model_type": name, "vocab_size": 100} for name in ("phi3", "gpt2"))],
    ids=["llama", "phi3", "gpt2"],
)
def test_a_checkpoint_is_written_as_the_hub_has_them(config: dict[str, Any], tmp_path: Path) -> None:
    write_checkpoint(tmp_path, config, torch.device("cpu"), shard_bytes=60_000)
    family = spec_from_config(json.loads((tmp_path / "config.json").read_text()))
    source = RandomCheckpoint(family.spec)
    with Checkpoint.open(tmp_path, family) as checkpoint:
        assert checkpoint.nbytes == checkpoint_bytes(config)
        for key in family.tensors:
            assert torch.equal(checkpoint.tensor(key), source.tensor(key))
    files = weight_files(tmp_path)
    assert len(files) > 2 and all(promised for promised in files.values())
    largest = max(2 * math.prod(shape) for shape in stored_shapes(family).values())
    assert max(path.stat().st_size for path in files) < max(60_000, largest) + 5_000
    warm_page_cache(tmp_path)


def test_ratios_of_a_load() -> None:
    assert (RUN.gb_per_s, RUN.host_ratio, RUN.gpu_ratio, RUN.first_launch) == (8, 0.1, 1.01, 0.125)


def test_peak_memory_is_of_what_happened_since_it_was_forgotten() -> None:
    loading.forget_peak()
    before = loading.resident_bytes()
    torch.ones(300 << 20, dtype=torch.uint8)
    assert loading.resident_bytes() - before < 200 << 20 < 299 << 20 <= loading.peak_bytes() - before


def fake_python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_load_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(RUN, from_cache=False)
    script = f"""test "$JITMK_CACHE_DIR" = "{tmp_path}/cache" || exit 1; test "$3" = "{tmp_path}/model" || exit 1
echo progress; echo '{json.dumps(asdict(other))}'"""
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, script))
    assert measure_load(tmp_path / "model", tmp_path / "cache") == other
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, "echo it is broken >&2; exit 3"))
    with pytest.raises(BenchmarkError, match="ended with status 3: it is broken"):
        measure_load(tmp_path / "model", tmp_path / "cache")
