"""`load_model` on folders that transformers wrote, and on folders that something happened to."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jitmk
from jitmk.engine import memory
from jitmk.engine.select import Selection
from jitmk.models import bundled_model_dir
from tests.support.checkpoints import TinyCheckpoint


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint in several files."""
    return TinyCheckpoint("sharded", shard_size="300KB").write(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_shard(folder: Path) -> Path:
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    return shards[0]


def truncated_file(folder: Path) -> None:
    shard = one_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-100])


def missing_shard(folder: Path) -> None:
    one_shard(folder).unlink()


def wrong_shape(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=224)


def unknown_family(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="mamba2", architectures=["Mamba2ForCausalLM"])


def unsupported_setting(folder: Path) -> None:
    edit_json(folder / "config.json", hidden_act="mish")


def quantised(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def pickle_only(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02never read")


def config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def impossible_generation_config(folder: Path) -> None:
    edit_json(folder / "generation_config.json", do_sample=True, top_p=2.0)


DAMAGES: tuple[tuple[Callable[[Path], None], type[jitmk.JitmkError], str], ...] = (
    (truncated_file, jitmk.CheckpointError, r"model-00001.* is truncated"),
    (missing_shard, jitmk.CheckpointError, r"lacks 1 of \d+ weight files: model-00001"),
    (wrong_shape, jitmk.CheckpointError, r"mlp\.\w+_proj\.weight in .* has shape \[208, 128\], but .*\[224, 128\]"),
    (unknown_family, jitmk.UnsupportedModelError, "mamba2"),
    (unsupported_setting, jitmk.UnsupportedModelError, "mish"),
    (quantised, jitmk.UnsupportedModelError, "quant"),
    (pickle_only, jitmk.CheckpointError, "pickle"),
    (config_that_is_no_json, jitmk.ConfigError, "not valid JSON"),
    (no_config, jitmk.ConfigError, r"no config\.json"),
    (damaged_tokenizer, jitmk.TokenizerError, r"tokenizer\.json"),
)


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_checkpoint_is_refused_by_name_and_left_as_it_is(
    folder: Path, damage: Callable[[Path], None], error: type[jitmk.JitmkError], message: str
) -> None:
    damage(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(error, match=message) as caught:
        jitmk.load_model(folder, backend="torch", device="cpu")
    assert isinstance(caught.value, jitmk.JitmkError)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_sound_checkpoint_loads_and_generates(folder: Path) -> None:
    with jitmk.load_model(str(folder), backend="torch", device="cpu") as model:
        result = model.generate("In the beginning", max_new_tokens=4, eos_token_ids=[])
        assert len(result.token_ids) == 4 and result.timings.prefill_ms > 0
        assert model.max_seq_len == 256 and model.spec.num_layers == 2


def test_a_missing_tokenizer_is_an_error_where_text_is_used(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with jitmk.load_model(folder, backend="torch", device="cpu") as model:
        assert len(model.generate([5, 6], max_new_tokens=3, eos_token_ids=[]).token_ids) == 3
        with pytest.raises(jitmk.TokenizerError, match=r"no tokenizer\.json: pass token ids"):
            model.generate("In the beginning")


def test_an_impossible_generation_config_is_refused_when_it_is_used(folder: Path) -> None:
    impossible_generation_config(folder)
    with (
        jitmk.load_model(folder, backend="torch", device="cpu") as model,
        pytest.raises(jitmk.ConfigError, match=r"generation_config\.json: top_p"),
    ):
        model.generate("x")


@pytest.mark.parametrize("dtype", [None, "auto", "bfloat16", torch.bfloat16])
def test_the_dtype_that_there_is(folder: Path, dtype: Any) -> None:
    jitmk.load_model(folder, dtype=dtype, backend="torch", device="cpu").close()


@pytest.mark.parametrize("dtype", ["float16", torch.float32, "int8", 16])
def test_other_dtypes_are_refused_before_anything_is_read(dtype: Any) -> None:
    with pytest.raises(jitmk.ConfigError, match=r"dtype=.* is not supported"):
        jitmk.load_model("/nowhere/at/all", dtype=dtype)


def test_the_context_may_be_cut_and_not_stretched(folder: Path) -> None:
    with jitmk.load_model(folder, max_seq_len=32, backend="torch", device="cpu") as model:
        assert model.max_seq_len == 32
        with pytest.raises(jitmk.ContextLengthError):
            model.generate([5] * 30, max_new_tokens=3)
    for wrong in (0, -1, 257):
        with pytest.raises(jitmk.ContextLengthError, match=f"max_seq_len={wrong}"):
            jitmk.load_model(folder, max_seq_len=wrong, backend="torch", device="cpu")


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_model_that_does_not_fit_is_refused(folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1 << 20)
    with pytest.raises(jitmk.DeviceMemoryError, match=r"weights .* KV cache .* are free"):
        jitmk.load_model(folder, backend=backend, device="cpu")


def test_no_model_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(jitmk.CheckpointError, match="there is no folder"):
        jitmk.load_model(tmp_path / "absent")
    with pytest.raises(jitmk.CheckpointError, match="on this machine, and the network is switched off"):
        jitmk.load_model("someone/some-model", local_files_only=True, cache_dir=tmp_path)


def test_a_backend_that_cannot_be_is_refused_before_the_model_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(backend: str, device: object) -> Selection:
        raise jitmk.DeviceError(f"there is no GPU for {backend}")

    with pytest.raises(jitmk.BackendError, match="does not exist"):
        jitmk.load_model("/nowhere/at/all", backend="gpu")
    monkeypatch.setattr("jitmk.api.select_backend", no_gpu)
    with pytest.raises(jitmk.DeviceError, match="no GPU for megakernel"):
        jitmk.load_model("/nowhere/at/all", backend="megakernel")


def test_an_impossible_setting_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMK_WAIT_DEADLINE_MS", "soon")
    with pytest.raises(jitmk.SettingsError, match="JITMK_WAIT_DEADLINE_MS='soon'"):
        jitmk.load_model(folder)


def test_without_a_name_it_is_the_bundled_model_and_its_text_reads_like_its_source() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = jitmk.load_model(backend="reference")
    with model:
        assert model.folder == bundled_model_dir()
        result = model.generate("In the beginning God created", max_new_tokens=40, temperature=0)
        assert any(word in result.text for word in (" the ", " and ", " of "))
        assert (
            model.generate("And", seed=3, max_new_tokens=12).text
            == model.generate("And", seed=3, max_new_tokens=12).text
        )
        seeds = {model.generate("And", max_new_tokens=12).seed for _ in range(3)}
        assert len(seeds) == 3, "a draw without a seed takes a new one"
        texts = {model.generate("And", seed=seed, max_new_tokens=12).text for seed in range(4)}
        assert len(texts) > 1
