"""The comparison that comes before every measurement, on the CPU: a stand-in for the megakernel in plain torch."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest
import torch

from benchmarks import truth
from benchmarks.records import BenchmarkError
from benchmarks.shapes import CONFIGS, FAMILY_MODELS
from benchmarks.truth import (
    Decoded,
    compare,
    decode,
    has_truth,
    random_prompt,
    require_transformers,
    transformers_model,
)
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.torch_backend import TorchBackend
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.families import spec_from_config
from jitmk.program.weights import plan_weights
from tests.support.checkpoints import TINY, TINY_OF

CONFIG = {**TINY, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 10000.0}
CPU = torch.device("cpu")
VOCABULARY = spec_from_config(CONFIG).spec.vocab_size


class SteppedTorch(TorchBackend):
    """The torch backend with the megakernel's way to decode given tokens."""

    def forced_logits(self, ids: Sequence[int], start: int) -> torch.Tensor:
        return self.prefill(ids, start, all_logits=True)


class Insistent(SteppedTorch):
    """Samples token 5, whatever the logits are."""

    def decode_stream(
        self, token: int, position: int, steps: int, sampling: DeviceSampling
    ) -> Generator[int, None, None]:
        yield from [5] * steps


def source(seed: int = 0) -> RandomCheckpoint:
    return RandomCheckpoint(spec_from_config(CONFIG).spec, seed)


def stepped(kind: type[SteppedTorch]) -> SteppedTorch:
    weights = source()
    return kind(weights.spec, plan_weights(weights.spec), weights, CPU, 96, progress=False)


def decoded(kind: type[SteppedTorch] = SteppedTorch) -> list[Decoded]:
    backend = stepped(kind)
    return [decode(backend, VOCABULARY, context, 48) for context in (9, 32)]


def test_right_tokens_and_logits_hold() -> None:
    comparisons = compare("tiny", CONFIG, source(), decoded(), CPU)
    assert [(made.context, made.tokens, made.wrong) for made in comparisons] == [(9, 48, 0), (32, 48, 0)]
    assert all(made.holds and 0 < made.error < made.bf16_error for made in comparisons)
    assert any(made.decided > 10 for made in comparisons)
    assert torch.get_default_dtype() == torch.float32


def test_other_weights_do_not_hold() -> None:
    comparisons = compare("tiny", CONFIG, source(seed=1), decoded(), CPU)
    assert not any(made.holds for made in comparisons)
    assert all(made.wrong > 0 and made.error > 0.5 for made in comparisons)


def test_one_wrong_token_does_not_hold() -> None:
    made = decoded()[0]
    true = torch.zeros(len(made.generated), VOCABULARY)
    true[range(len(made.generated)), made.generated] = 30.0
    right = Decoded(made.prompt, made.generated, true)
    assert truth._comparison("tiny", right, true + 1e-3, true).wrong == 0
    wrong = Decoded(made.prompt, [*made.generated[:-1], made.generated[-1] ^ 1], true)
    assert truth._comparison("tiny", wrong, true + 1e-3, true).wrong == 1


def test_tokens_that_are_not_the_largest_logits_are_an_error() -> None:
    with pytest.raises(BenchmarkError, match="at context 9 the sampled tokens are not those of the largest logits"):
        decoded(Insistent)


def test_prompts_are_the_same_every_time() -> None:
    assert random_prompt(100, 7) == random_prompt(100, 7) and len(random_prompt(100, 7)) == 7
    assert all(0 <= token < 100 for token in random_prompt(100, 500))


@pytest.mark.parametrize("name", sorted({CONFIGS[name]["model_type"] for name in FAMILY_MODELS}))
def test_every_family_that_is_measured_has_a_truth(name: str) -> None:
    config = {**TINY_OF[name], "model_type": name, "vocab_size": 256}
    weights = RandomCheckpoint(spec_from_config(config).spec, seed=2)
    backend = SteppedTorch(weights.spec, plan_weights(weights.spec), weights, CPU, 96, progress=False)
    made = decode(backend, 256, 42, 32)  # past the window
    (comparison,) = compare(name, config, weights, [made], CPU)
    assert comparison.error < comparison.bf16_error and comparison.wrong == 0, str(comparison)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_is_of_the_type_that_was_asked_for_whatever_the_config_says(dtype: torch.dtype) -> None:
    model = transformers_model(CONFIG | {"dtype": "float16"}, dtype, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training and torch.get_default_dtype() == torch.float32


def test_attention_is_sdpa_unless_it_cannot_do_what_the_model_asks_for() -> None:
    found = {
        name: transformers_model(CONFIGS[name], torch.bfloat16, torch.device("meta")).config._attn_implementation
        for name in ("llama-3.2-1b", "mistral-7b", "gpt2", "gemma-2-2b")
    }
    assert found == {"llama-3.2-1b": "sdpa", "mistral-7b": "sdpa", "gpt2": "sdpa", "gemma-2-2b": "eager"}


@pytest.mark.parametrize(
    ("name", "context", "tokens", "expected"),
    [
        ("phi-4-mini", 128, 512, True),
        ("phi-4-mini", 4096, 1, True),  # the one token comes from the prompt alone
        ("phi-4-mini", 4096, 2, False),
        ("phi-4-mini", 3841, 256, True),
        ("phi-4-mini", 3842, 256, False),
        ("phi-4-mini", 4097, 256, True),
        ("llama-3.2-1b", 4096, 256, True),
    ],
)
def test_frequencies_that_change_with_the_length_have_no_truth(
    name: str, context: int, tokens: int, expected: bool
) -> None:
    assert has_truth(spec_from_config(CONFIGS[name]).spec, context, tokens) is expected


def test_a_base_that_grows_with_every_token_has_no_truth_past_the_pretrained_context() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    spec = spec_from_config(CONFIG | {"rope_parameters": rope}).spec
    assert has_truth(spec, 128, 129) and not has_truth(spec, 128, 130) and not has_truth(spec, 300, 2)


def test_without_transformers_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    require_transformers()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match="transformers is not installed"):
        require_transformers()
