from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jitmk
from jitmk.engine import memory


@pytest.mark.parametrize(
    ("nbytes", "text"), [(15_010_000_000, "15 GB"), (1_240_000_000, "1.24 GB"), (31_000_000, "31 MB"), (900, "0.9 kB")]
)
def test_sizes_for_people(nbytes: int, text: str) -> None:
    assert memory.gigabytes(nbytes) == text


def test_the_least_of_machine_and_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", "max": "4096000\n", "current": "3000000\n"}
    files["stat"] = "anon 2000000\ninactive_file 500000\nactive_file 400000\n"
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for constant, name in (("MEMINFO", "meminfo"), ("CGROUP_LIMIT", "max"), ("CGROUP_USE", "current")):
        monkeypatch.setattr(memory, f"_{constant}", tmp_path / name)
    monkeypatch.setattr(memory, "_CGROUP_DETAIL", tmp_path / "stat")
    # Page cache is given up when memory is short.
    assert memory.free_memory(torch.device("cpu")) == 4096000 - 3000000 + 900000
    (tmp_path / "max").write_text("max\n")
    assert memory.free_memory(torch.device("cpu")) == 8000 * 1024
    (tmp_path / "meminfo").unlink()
    assert memory.free_memory(torch.device("cpu")) is None


def test_a_refusal_names_each_size_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 2_000_000_000)
    memory.require_memory(torch.device("cpu"), {"weights": 1_500_000_000, "KV cache": 500_000_000})
    with pytest.raises(jitmk.DeviceMemoryError) as caught:
        memory.require_memory(torch.device("cpu"), {"weights": 1_500_000_000, "KV cache": 600_000_000})
    for part in ("2.1 GB on cpu", "weights 1.5 GB", "KV cache 600 MB", "2 GB are free", "smaller max_seq_len"):
        assert part in str(caught.value)


def test_where_nobody_knows_what_is_free_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    memory.require_memory(torch.device("cpu"), {"weights": 10**18})
