"""The comparison that comes before every measurement, on the CPU: a stand-in for the megakernel in plain torch."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest
import torch

from benchmarks import truth
from benchmarks.records import BenchmarkError
from benchmarks.truth import Decoded, compare, decode, default_dtype, random_prompt, require_transformers
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.torch_backend import TorchBackend
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.families import spec_from_config
from jitmk.program.weights import plan_weights
from tests.support.checkpoints import TINY

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


def test_the_default_type_comes_back_after_an_error() -> None:
    with pytest.raises(ValueError), default_dtype(torch.bfloat16):
        assert torch.empty(0).dtype is torch.bfloat16
        raise ValueError
    assert torch.get_default_dtype() == torch.float32


def test_without_transformers_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    require_transformers()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match="transformers is not installed"):
        require_transformers()
