"""Every family against transformers' own models: names, shapes and values of all tensors."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from jitmk.model.checkpoint import Checkpoint
from jitmk.model.families import spec_from_config, supported_model_types
from jitmk.model.spec import Role, WeightKey, weight_shapes
from tests.support.checkpoints import TINY_OF, random_model

CHANGES: dict[str, list[dict[str, Any]]] = {
    "llama": [{"attention_bias": True, "mlp_bias": True}],
    "mistral": [{"sliding_window": None, "head_dim": None, "tie_word_embeddings": True}],
    "qwen2": [{"use_sliding_window": False, "tie_word_embeddings": True}],
    "qwen3": [{"attention_bias": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}],
    "phi3": [{"rope_parameters": None, "num_key_value_heads": 2, "sliding_window": 9, "tie_word_embeddings": True}],
    "gemma2": [{"attention_bias": True, "tie_word_embeddings": False, "attn_logit_softcapping": None}],
    "gemma3_text": [{"attention_bias": True, "rope_parameters": None, "final_logit_softcapping": 3.0}],
    "gpt2": [{"n_inner": None, "tie_word_embeddings": False, "activation_function": "gelu"}],
    "olmo2": [{"attention_bias": True, "tie_word_embeddings": True}],
    "granite": [{"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True}],
    "starcoder2": [{"use_bias": False, "sliding_window": None, "tie_word_embeddings": False}],
    "smollm3": [
        {"attention_bias": True, "mlp_bias": True, "no_rope_layers": [0, 1, 1, 0], "tie_word_embeddings": False},
        {"use_sliding_window": True, "sliding_window": 8, "no_rope_layers": [0, 0, 0, 0]},
    ],
    "cohere": [{"attention_bias": True, "tie_word_embeddings": False}, {"use_qk_norm": False}],
}
"""What else than `TINY_OF` has to be read, for its tensors or for its keys."""

CASES = [
    pytest.param(family, config, id=f"{family}-{number}")
    for family, tiny in TINY_OF.items()
    for number, config in enumerate([tiny, *(tiny | changes for changes in CHANGES.get(family, []))])
]


def test_every_family_is_tried() -> None:
    assert tuple(sorted(TINY_OF)) == supported_model_types()


@pytest.mark.parametrize(("model_type", "config"), CASES)
def test_every_tensor_of_a_saved_model_is_found(model_type: str, config: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(model_type, config | {"vocab_size": 64}, seed=0)
    model.save_pretrained(tmp_path)
    family = spec_from_config(json.loads((tmp_path / "config.json").read_text()))
    names = {name for name, _ in model.named_parameters()}
    assert {ref.name for ref in family.tensors.values()} == names
    assert family.tensors.keys() == weight_shapes(family.spec).keys()
    assert family.spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of tensors that have no use
        checkpoint = Checkpoint.open(tmp_path, family)
    with checkpoint:
        for key, shape in weight_shapes(family.spec).items():
            assert checkpoint.tensor(key).shape == shape, key


def attention_weights(model_type: str, folder: Path, **changes: Any) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """An opened tiny checkpoint and the parameters that were saved."""
    model = random_model(model_type, TINY_OF[model_type] | {"vocab_size": 64} | changes, seed=0)
    model.save_pretrained(folder)
    family = spec_from_config(json.loads((folder / "config.json").read_text()))
    return Checkpoint.open(folder, family), model.state_dict()


def test_phi3_stacks_projections(tmp_path: Path) -> None:
    checkpoint, stored = attention_weights("phi3", tmp_path)
    qkv, mlp = stored["model.layers.1.self_attn.qkv_proj.weight"], stored["model.layers.1.mlp.gate_up_proj.weight"]
    for role, part in {
        Role.Q: qkv[:128],
        Role.K: qkv[128:192],
        Role.V: qkv[192:],
        Role.GATE: mlp[:208],
        Role.UP: mlp[208:],
    }.items():
        assert torch.equal(checkpoint.tensor(WeightKey(role, 1)), part), role


def test_gpt2_stacks_and_transposes(tmp_path: Path) -> None:
    checkpoint, stored = attention_weights("gpt2", tmp_path)
    weight, bias = stored["transformer.h.1.attn.c_attn.weight"], stored["transformer.h.1.attn.c_attn.bias"]
    for number, (role, bias_role) in enumerate([(Role.Q, Role.Q_BIAS), (Role.K, Role.K_BIAS), (Role.V, Role.V_BIAS)]):
        columns = slice(128 * number, 128 * (number + 1))
        assert torch.equal(checkpoint.tensor(WeightKey(role, 1)), weight[:, columns].t())
        assert torch.equal(checkpoint.tensor(WeightKey(bias_role, 1)), bias[columns])
    assert torch.equal(checkpoint.tensor(WeightKey(Role.DOWN, 0)), stored["transformer.h.0.mlp.c_proj.weight"].t())


def test_gpt2_without_its_prefix_and_with_masks(tmp_path: Path) -> None:
    """As the first checkpoints have it, which were saved without a language model head."""
    from safetensors.torch import save_file

    checkpoint, stored = attention_weights("gpt2", tmp_path)
    checkpoint.close()
    family = spec_from_config(json.loads((tmp_path / "config.json").read_text()))
    short = {name.removeprefix("transformer."): value for name, value in stored.items() if name != "lm_head.weight"}
    short = {name: value.contiguous() for name, value in short.items()} | {"h.0.attn.bias": torch.ones(1, 1, 256, 256)}
    save_file(short, tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Checkpoint.open(tmp_path, family)
    for key in weight_shapes(family.spec):
        assert again.tensor(key).shape == weight_shapes(family.spec)[key]
    assert torch.equal(again.tensor(WeightKey(Role.EMBEDDING)), stored["transformer.wte.weight"])


def test_learned_positions_are_cut_with_the_context(tmp_path: Path) -> None:
    checkpoint, stored = attention_weights("gpt2", tmp_path)
    checkpoint.close()
    family = spec_from_config(json.loads((tmp_path / "config.json").read_text()), max_seq_len=100)
    with Checkpoint.open(tmp_path, family) as short:
        positions = short.tensor(WeightKey(Role.POSITION_EMBEDDING))
    assert torch.equal(positions, stored["transformer.wpe.weight"][:100])


def test_cohere_reorders_what_is_rotated(tmp_path: Path) -> None:
    """Even dimensions of a head first, then odd ones: of queries, keys, their biases and the weights of their norms."""
    checkpoint, stored = attention_weights("cohere", tmp_path, attention_bias=True)
    order = torch.cat([torch.arange(0, 64, 2), torch.arange(1, 64, 2)])
    prefix = "model.layers.1.self_attn."
    for role, name in {
        Role.Q: "q_proj.weight",
        Role.K: "k_proj.weight",
        Role.Q_BIAS: "q_proj.bias",
        Role.K_BIAS: "k_proj.bias",
    }.items():
        heads = stored[prefix + name].reshape(len(stored[prefix + name]) // 64, 64, -1)
        assert torch.equal(
            checkpoint.tensor(WeightKey(role, 1)), heads[:, order].reshape(stored[prefix + name].shape)
        ), role
    for role, name in {Role.Q_NORM: "q_norm.weight", Role.K_NORM: "k_norm.weight"}.items():
        assert torch.equal(checkpoint.tensor(WeightKey(role, 1)), stored[prefix + name][:, order]), role
    assert torch.equal(checkpoint.tensor(WeightKey(Role.V, 1)), stored[prefix + "v_proj.weight"])
