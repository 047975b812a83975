"""Checkpoints: everything is checked before anything is loaded, and what is loaded is what was saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from jitmk.errors import CheckpointError
from jitmk.model.checkpoint import Checkpoint, RandomCheckpoint, WeightSource
from jitmk.model.families import LoadedFamily, TensorRef, spec_from_config
from jitmk.model.spec import (
    NormKind,
    NormSpec,
    QkNorm,
    QkNormScope,
    Role,
    WeightKey,
    weight_offset,
    weight_shapes,
)
from tests.unit.model.configs import llama_config

EMBEDDING = "model.embed_tokens.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def tensors_of(family: LoadedFamily, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Random tensors under their checkpoint names."""
    source = RandomCheckpoint(family.spec, seed=1, dtype=dtype)
    return {ref.name: source.tensor(key) for key, ref in family.tensors.items()}


def save_sharded(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 3) -> dict[str, str]:
    """Saves tensors in shards with an index; returns the weight map."""
    names = sorted(tensors)
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture(scope="module")
def family() -> LoadedFamily:
    return spec_from_config(llama_config())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sharded", [False, True])
def test_tensors_come_back_as_they_were_saved(
    tmp_path: Path, family: LoadedFamily, dtype: torch.dtype, sharded: bool
) -> None:
    tensors = tensors_of(family, dtype)
    if sharded:
        save_sharded(tmp_path, tensors)
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    source: WeightSource
    with Checkpoint.open(tmp_path, family) as source:
        assert source.spec == family.spec
        assert source.nbytes == family.spec.parameters * dtype.itemsize
        for key, ref in family.tensors.items():
            assert torch.equal(source.tensor(key), tensors[ref.name])
            assert source.tensor(key).is_contiguous()
        kept = source.tensor(WeightKey(Role.Q, 0))
    assert torch.equal(kept, tensors["model.layers.0.self_attn.q_proj.weight"])
    with pytest.raises(CheckpointError, match="closed"):
        source.tensor(WeightKey(Role.Q, 0))
    source.close()


def test_tensors_are_mapped_not_copied(tmp_path: Path, family: LoadedFamily) -> None:
    save_file(tensors_of(family), tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path, family) as source:
        key = WeightKey(Role.GATE, 1)
        assert source.tensor(key).data_ptr() == source.tensor(key).data_ptr()


def test_a_key_that_the_model_does_not_have(tmp_path: Path, family: LoadedFamily) -> None:
    save_file(tensors_of(family), tmp_path / "model.safetensors")
    for source in (Checkpoint.open(tmp_path, family), RandomCheckpoint(family.spec)):
        with pytest.raises(KeyError):
            source.tensor(WeightKey(Role.Q, 2))


def test_a_single_file_outranks_an_index(tmp_path: Path, family: LoadedFamily) -> None:
    save_file(tensors_of(family), tmp_path / "model.safetensors")
    write_index(tmp_path, {"x": "missing.safetensors"})
    Checkpoint.open(tmp_path, family).close()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, family: LoadedFamily, keep: int) -> None:
    save_sharded(tmp_path, tensors_of(family))
    victim = tmp_path / "model-00002-of-00003.safetensors"
    victim.write_bytes(victim.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors \(\d+ bytes\) is truncated"):
        Checkpoint.open(tmp_path, family)


def test_a_pickle_that_is_named_safetensors_is_not_loaded(tmp_path: Path, family: LoadedFamily) -> None:
    torch.save({"a": torch.zeros(9)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not safetensors"):
        Checkpoint.open(tmp_path, family)


def test_missing_shards_are_named(tmp_path: Path, family: LoadedFamily) -> None:
    save_sharded(tmp_path, tensors_of(family))
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 3 weight files: model-00001-of-00003\.safetensors"):
        Checkpoint.open(tmp_path, family)


def test_missing_tensors_are_named(tmp_path: Path, family: LoadedFamily) -> None:
    tensors = tensors_of(family)
    del tensors[DOWN]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors of the model: {DOWN}$"):
        Checkpoint.open(tmp_path, family)
    save_file({EMBEDDING: tensors[EMBEDDING]}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 20 tensors of the model: .* and 17 more"):
        Checkpoint.open(tmp_path, family)


def test_a_missing_head_hints_at_tied_embeddings(tmp_path: Path, family: LoadedFamily) -> None:
    tensors = tensors_of(family)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight; .*tie_word_embeddings"):
        Checkpoint.open(tmp_path, family)


def test_an_index_that_lies_about_a_shard_is_refused(tmp_path: Path, family: LoadedFamily) -> None:
    weight_map = save_sharded(tmp_path, tensors_of(family))
    write_index(tmp_path, weight_map | {DOWN: weight_map[EMBEDDING], EMBEDDING: weight_map[DOWN]})
    with pytest.raises(CheckpointError, match=r"safetensors lacks model\.\S+, which the index says it holds"):
        Checkpoint.open(tmp_path, family)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", 7, ".."])
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, family: LoadedFamily, shard: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors_of(family), tmp_path / "secret.safetensors")
    write_index(folder, dict.fromkeys(tensors_of(family), shard))
    with pytest.raises(CheckpointError, match="shards must be safetensors files of that folder"):
        Checkpoint.open(folder, family)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", "{"])
def test_a_malformed_index_is_named(tmp_path: Path, family: LoadedFamily, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        Checkpoint.open(tmp_path, family)


def test_a_wrong_shape_names_tensor_file_and_shapes(tmp_path: Path, family: LoadedFamily) -> None:
    tensors = tensors_of(family) | {DOWN: torch.zeros(192, 128)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{DOWN} in .*model\.safetensors has shape \[192, 128\].*\[128, 192\]"):
        Checkpoint.open(tmp_path, family)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(tmp_path: Path, family: LoadedFamily, dtype: torch.dtype) -> None:
    tensors = tensors_of(family)
    tensors[DOWN] = tensors[DOWN].to(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{DOWN}.* has dtype .*jitmk reads BF16, F16, F32"):
        Checkpoint.open(tmp_path, family)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pytorch_model.bin", r"only pickle weights \(pytorch_model\.bin\): jitmk never loads pickle.*save_pretrained"),
        ("consolidated.00.pth", "only pickle weights"),
        ("model.Q4_0.gguf", "only GGUF weights"),
        ("tf_model.h5", "only TensorFlow"),
        ("adapter_model.safetensors", "only an adapter"),
        ("model.fp16.safetensors", "which no index explains"),
        ("notes.txt", "in another format only"),
    ],
)
def test_a_folder_without_safetensors_is_explained(tmp_path: Path, family: LoadedFamily, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.open(tmp_path, family)


def test_extra_tensors_are_warned_about_unless_harmless(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    tied = spec_from_config(llama_config(tie_word_embeddings=True))
    harmless = {
        "lm_head.weight": torch.zeros(100, 128),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(32),
    }
    save_file(tensors_of(tied) | harmless, tmp_path / "model.safetensors")
    Checkpoint.open(tmp_path, tied).close()
    assert not recwarn.list
    save_file(
        tensors_of(tied) | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}, tmp_path / "model.safetensors"
    )
    with pytest.warns(UserWarning, match=r"1 tensors .*q_proj\.bias; they are ignored"):
        Checkpoint.open(tmp_path, tied).close()


def fused(family: LoadedFamily) -> LoadedFamily:
    """The same model with QKV in one tensor, and the MLP stored as [in, out] with gate and up in one."""
    spec, refs = family.spec, dict(family.tensors)
    for layer in range(spec.num_layers):
        begin = 0
        for role in (Role.Q, Role.K, Role.V):
            rows = weight_shapes(spec)[WeightKey(role, layer)][0]
            refs[WeightKey(role, layer)] = TensorRef(f"h.{layer}.qkv", (begin, begin + rows))
            begin += rows
        m = spec.intermediate_size
        refs[WeightKey(Role.GATE, layer)] = TensorRef(f"h.{layer}.fc", (0, m), transpose=True)
        refs[WeightKey(Role.UP, layer)] = TensorRef(f"h.{layer}.fc", (m, 2 * m), transpose=True)
        refs[WeightKey(Role.DOWN, layer)] = TensorRef(f"h.{layer}.proj", transpose=True)
    return LoadedFamily(spec, refs)


def test_fused_and_transposed_tensors(tmp_path: Path, family: LoadedFamily) -> None:
    plain = RandomCheckpoint(family.spec, seed=1)
    tensors = {
        ref.name: plain.tensor(key) for key, ref in fused(family).tensors.items() if not ref.name.startswith("h.")
    }
    for layer in range(family.spec.num_layers):
        parts = {
            role: plain.tensor(WeightKey(role, layer)) for role in Role if WeightKey(role, layer) in family.tensors
        }
        tensors[f"h.{layer}.qkv"] = torch.cat([parts[Role.Q], parts[Role.K], parts[Role.V]])
        tensors[f"h.{layer}.fc"] = torch.cat([parts[Role.GATE], parts[Role.UP]]).t().contiguous()
        tensors[f"h.{layer}.proj"] = parts[Role.DOWN].t().contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path, fused(family)) as source:
        for key in family.tensors:
            assert torch.equal(source.tensor(key), plain.tensor(key)), key
            assert source.tensor(key).is_contiguous()
    tensors["h.0.qkv"] = tensors["h.0.qkv"][:-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"h\.0\.qkv .* has shape \[255, 128\].*\[256, 128\]"):
        Checkpoint.open(tmp_path, fused(family))


def test_random_weights_are_reproducible_and_in_scale(family: LoadedFamily) -> None:
    first, again, other = (RandomCheckpoint(family.spec, seed, torch.float32) for seed in (3, 3, 4))
    q0, q1, norm = WeightKey(Role.Q, 0), WeightKey(Role.Q, 1), WeightKey(Role.MLP_NORM, 0)
    assert torch.equal(first.tensor(q0), again.tensor(q0))
    assert not torch.equal(first.tensor(q0), other.tensor(q0))
    assert not torch.equal(first.tensor(q0), first.tensor(q1))
    assert first.tensor(q0).std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert first.tensor(norm).mean().item() == pytest.approx(1.0, abs=0.05)
    assert first.tensor(norm).std().item() == pytest.approx(0.1, rel=0.3)
    half = RandomCheckpoint(family.spec, 3, torch.bfloat16)
    assert torch.equal(half.tensor(q0), first.tensor(q0).bfloat16())
    assert (first.nbytes, half.nbytes) == (4 * family.spec.parameters, 2 * family.spec.parameters)


def test_random_norms_are_about_one_whatever_is_added_to_them() -> None:
    """A norm whose stored weight lacks 1 is stored about 0; its biases, and those of layer norms, are small."""
    rms = spec_from_config(llama_config()).spec
    qk_norm = QkNorm(NormKind.RMS, 1e-6, QkNormScope.HEAD_WEIGHTS, offset=1.0)
    stored_minus_one = replace(rms, norm=NormSpec(NormKind.RMS, 1e-6, offset=1.0), qk_norm=qk_norm, post_norm=True)
    source = RandomCheckpoint(stored_minus_one, 3, torch.float32)
    for role in (Role.ATTENTION_NORM, Role.ATTENTION_POST_NORM, Role.MLP_POST_NORM, Role.Q_NORM, Role.K_NORM):
        weight = source.tensor(WeightKey(role, 1))
        assert weight.mean().item() == pytest.approx(0.0, abs=0.05), role
        assert weight.std().item() == pytest.approx(0.1, rel=0.3), role
        assert weight_offset(stored_minus_one, role) == 1.0
    layer = RandomCheckpoint(replace(rms, norm=NormSpec(NormKind.LAYER, 1e-6, bias=True)), 3, torch.float32)
    assert layer.tensor(WeightKey(Role.FINAL_NORM)).mean().item() == pytest.approx(1.0, abs=0.05)
    assert layer.tensor(WeightKey(Role.FINAL_NORM_BIAS)).mean().item() == pytest.approx(0.0, abs=0.05)


@settings(deadline=None, max_examples=30)
@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 3)]),
    st.sampled_from([64, 80, 96, 128, 256]),
    st.integers(1, 3),
    st.integers(1, 40),
)
def test_any_config_opens_what_transformers_saves(
    tmp_path_factory: pytest.TempPathFactory,
    tied: bool,
    attention_bias: bool,
    mlp_bias: bool,
    heads: tuple[int, int],
    head_dim: int,
    layers: int,
    vocab: int,
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=48,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=head_dim,
        tie_word_embeddings=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        pad_token_id=None,
    )
    network = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("saved")
    network.save_pretrained(folder)
    family = spec_from_config(json.loads((folder / "config.json").read_text()))
    state = network.state_dict()
    with Checkpoint.open(folder, family) as source:
        for key, ref in family.tensors.items():
            assert torch.equal(source.tensor(key), state[ref.name])
        assert family.spec.parameters == sum(p.numel() for p in network.parameters())
