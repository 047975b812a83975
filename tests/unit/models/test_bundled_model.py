"""The shipped folder: loads like any Hugging Face model, fits its limits, and has learnt its text."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import jitmk.models
from jitmk.models import BUNDLED_MODEL_NAME, BundledModelMissingError, bundled_model_dir
from jitmk.models.training.card import render_card

MEGABYTE = 1_000_000

HELD_OUT_EXCERPTS = {
    "Ge40": """And it came to pass after these things, that the butler of the king of Egypt and his baker had \
offended their lord the king of Egypt.
And Pharaoh was wroth against two of his officers, against the chief of the butlers, and against the chief of the \
bakers.
And he put them in ward in the house of the captain of the guard, into the prison, the place where Joseph was bound.""",
    "Psa2": """Why do the heathen rage, and the people imagine a vain thing?
The kings of the earth set themselves, and the rulers take counsel together, against the LORD, and against his \
anointed, saying,
Let us break their bands asunder, and cast away their cords from us.""",
    "Prv12": """Whoso loveth instruction loveth knowledge: but he that hateth reproof is brutish.
A good man obtaineth favour of the LORD: but a man of wicked devices will he condemn.
A man shall not be established by wickedness: but the root of the righteous shall not be moved.""",
    "1Jn1": """That which was from the beginning, which we have heard, which we have seen with our eyes, which we \
have looked upon, and our hands have handled, of the Word of life;
(For the life was manifested, and we have seen it, and bear witness, and shew unto you that eternal life, which was \
with the Father, and was manifested unto us;)""",
}
"""Public-domain verses (King James Version, 1611) of test chapters: no training step and no choice saw them."""


def causal_lm() -> Any:
    """transformers' AutoModelForCausalLM, whose annotations do not know `output_loading_info`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """What training.json says."""
    loaded: dict[str, Any] = json.loads((bundled_model_dir() / "training.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bundled_model_dir())


@pytest.fixture(scope="module")
def network() -> Any:
    """The model as transformers loads it, computing in fp32."""
    return causal_lm().from_pretrained(bundled_model_dir()).float().eval()


@torch.no_grad()
def nats_per_token(network: Any, tokenizer: Any, text: str) -> float:
    """Mean negative log-likelihood of the text's tokens after BOS."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    logits = network(input_ids=ids[:, :-1]).logits[0]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


def test_folder_is_an_ordinary_model_folder_without_code() -> None:
    assert {file.name for file in bundled_model_dir().iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }


def test_finding_the_folder_loads_no_heavy_module() -> None:
    code = "import sys, jitmk.models as models; models.bundled_model_dir(); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines())
    assert "jitmk.models" in loaded
    assert not loaded & {"torch", "numpy", "transformers", "tokenizers", "safetensors"}


def test_missing_package_data_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jitmk.models, "BUNDLED_MODEL_NAME", "absent-model")
    with pytest.raises(
        BundledModelMissingError, match=r"absent-model.*config\.json does not exist.*Install jitmk again"
    ):
        bundled_model_dir()


def test_weights_are_finite_bf16_within_the_size_limit(record: dict[str, Any]) -> None:
    file = bundled_model_dir() / "model.safetensors"
    weights = load_file(file)
    assert file.stat().st_size < 12 * MEGABYTE
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert sum(tensor.numel() for tensor in weights.values()) == record["parameters"]


def test_transformers_finds_every_weight_and_no_other() -> None:
    model, report = causal_lm().from_pretrained(bundled_model_dir(), output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == 4096
    assert model.config.rms_norm_eps == 1e-5


def test_special_tokens_agree_in_all_files(tokenizer: Any) -> None:
    config = json.loads((bundled_model_dir() / "config.json").read_text())
    generation = json.loads((bundled_model_dir() / "generation_config.json").read_text())
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    for source in (config, generation):
        assert (source["bos_token_id"], source["eos_token_id"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer("And God said")["input_ids"][0] == tokenizer.bos_token_id
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.model_max_length == config["max_position_embeddings"]


@pytest.mark.parametrize(
    "text",
    [
        "In the beginning God",
        "naïve café",
        "Ἐν ἀρχῇ ἦν ὁ λόγος",
        "בְּרֵאשִׁית",
        "初めに、神は",
        "🕊️👩‍👩‍👧",
        " \n\t \r\n a  b ",
        "\x00\x7f",
        "",
    ],
)
def test_tokenizer_returns_any_text_unchanged(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_tokenizer_returns_random_text_unchanged(tokenizer: Any, text: str) -> None:
    if "<s>" not in text and "</s>" not in text:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("chapter", HELD_OUT_EXCERPTS)
def test_model_predicts_held_out_verses(network: Any, tokenizer: Any, record: dict[str, Any], chapter: str) -> None:
    assert chapter in record["text"]["test_chapters"]
    # Knowing nothing costs ln 4096 = 8.3 nats a token, knowing word frequencies about 5.5; the test set costs 2.9.
    assert nats_per_token(network, tokenizer, HELD_OUT_EXCERPTS[chapter]) < 4.0


@pytest.mark.parametrize("chapter", HELD_OUT_EXCERPTS)
def test_model_knows_the_order_of_words(network: Any, tokenizer: Any, chapter: str) -> None:
    words = HELD_OUT_EXCERPTS[chapter].split()
    shuffled = random.Random(0).sample(words, len(words))
    in_order = nats_per_token(network, tokenizer, " ".join(words))
    assert nats_per_token(network, tokenizer, " ".join(shuffled)) > in_order + 3.0


def test_recorded_losses_are_consistent(record: dict[str, Any]) -> None:
    for part in ("validation", "test"):
        loss = record[part]
        nats = loss["nats_per_token"] * loss["tokens"]
        assert loss["nats_per_byte"] == pytest.approx(nats / loss["bytes"], abs=1e-3)
        assert loss["bits_per_byte"] == pytest.approx(loss["nats_per_byte"] / math.log(2), abs=1e-3)


def test_card_is_what_the_record_says(record: dict[str, Any]) -> None:
    assert (bundled_model_dir() / "README.md").read_text() == render_card(record, BUNDLED_MODEL_NAME)


def test_folder_lies_inside_the_package() -> None:
    assert bundled_model_dir().parent == Path(jitmk.models.__file__).resolve().parent
