"""What a user calls: load_model with the model that jitmk brings along, through the megakernel."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

import jitmk
from jitmk.cuda.device import Device
from jitmk.engine.megakernel import MegakernelBackend
from tests.support.truth import relative_error

pytestmark = pytest.mark.gpu

PROMPT = "And God said,"
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def reference() -> Iterator[jitmk.Model]:
    with jitmk.load_model(backend="reference") as model:
        yield model


@pytest.fixture
def model(gpu: Device) -> Iterator[jitmk.Model]:
    with jitmk.load_model(backend="megakernel") as live:
        yield live


def test_greedy_text_is_that_of_the_reference(model: jitmk.Model, reference: jitmk.Model) -> None:
    """Token by token, wherever the two best logits are further apart than the two backends are."""
    result = model.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0.0)
    prompt = model.encode(PROMPT)
    ids = [*prompt, *result.token_ids]
    truth = reference.logits(ids[:-1])
    assert isinstance(model.backend, MegakernelBackend)
    ours = model.backend.forced_logits(ids[:-1], 0)
    assert relative_error(ours, truth) < 0.02
    noise = 2 * float((ours - truth).abs().max())
    decided = 0
    for logits, chosen in zip(truth[len(prompt) - 1 :], result.token_ids, strict=True):
        top = logits.topk(2).values
        assert logits[chosen] >= top[0] - noise
        if top[0] - top[1] > noise:
            decided += 1
            assert chosen == int(logits.argmax())
    assert decided > len(result.token_ids) // 2
    assert len(result.text) > len(result.token_ids), "text, not noise: most tokens are more than one character"


def test_auto_takes_the_megakernel_and_says_why(gpu: Device) -> None:
    with jitmk.load_model() as live:
        assert live.backend_name == "megakernel" and "GPU" in live.backend_reason


def test_the_stream_is_the_generation(model: jitmk.Model) -> None:
    whole = model.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0.7, seed=11)
    stream = model.stream(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0.7, seed=11)
    assert "".join(stream) == whole.text
    assert stream.result.token_ids == whole.token_ids


def test_host_and_device_sample_alike(model: jitmk.Model) -> None:
    """Asking for logprobs moves sampling to the host, with the same noise and the same logits."""
    device = model.generate(PROMPT, max_new_tokens=32, temperature=0.7, seed=5)
    host = model.generate(PROMPT, max_new_tokens=32, temperature=0.7, seed=5, logprobs=1)
    assert host.token_ids == device.token_ids
    assert host.logprobs is not None and len(host.logprobs) == len(host.token_ids)


def test_logits_are_those_of_the_reference(model: jitmk.Model, reference: jitmk.Model) -> None:
    ids = model.encode("In the beginning God created the heaven and the earth.")
    assert relative_error(model.logits(ids), reference.logits(ids)) < 0.02


def test_memory_comes_back(gpu: Device) -> None:
    jitmk.load_model(backend="megakernel").close()
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        with jitmk.load_model(backend="megakernel") as live:
            live.generate(PROMPT, max_new_tokens=4)
    gc.collect()
    assert torch.cuda.memory_allocated() <= before
