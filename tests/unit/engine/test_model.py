from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

import jitmk
from tests.support.scripted import VOCABULARY, ScriptedBackend, scripted_model


def test_prompts_may_be_texts_or_any_sequence_of_ids() -> None:
    model = scripted_model("good")
    ids = model.encode("In the beginning")
    assert ids == model.tokenizer.encode("In the beginning")
    assert model.encode(np.array(ids)) == model.encode(torch.tensor(ids)) == model.encode(tuple(ids)) == ids  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", ["", [], (), torch.tensor([], dtype=torch.int64)])
def test_an_empty_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(jitmk.GenerationError, match="the prompt is empty"):
        scripted_model("good").generate(prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([5, VOCABULARY], r"prompt\[1\] is token 4096"), ([-1], "token -1"), ([1.5], "token ids are integers")],
)
def test_ids_that_the_model_does_not_have_are_refused(prompt: Any, message: str) -> None:
    with pytest.raises(jitmk.GenerationError, match=message):
        scripted_model("good").generate(prompt)


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(jitmk.TokenizerError, match="no chat template"):
        scripted_model("good").generate([{"role": "user", "content": "Who was Moses?"}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": -3}, "max_new_tokens=-3"),
        ({"top_p": 2, "temperature": 1.0}, "top_p=2"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_k": 5, "temperature": 0}, "top_k=5"),
        ({"max_tokens": 5}, "unknown argument max_tokens"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_runs(arguments: dict[str, Any], message: str) -> None:
    model = scripted_model("good")
    with pytest.raises(jitmk.GenerationError, match=message):
        model.stream("x", **arguments)
    assert isinstance(model.backend, ScriptedBackend) and model.backend.calls == []


def test_what_does_not_fit_into_the_context_is_refused_before_anything_runs() -> None:
    model = scripted_model("good", max_seq_len=16)
    with pytest.raises(jitmk.ContextLengthError, match="16 tokens, and the context 16"):
        model.stream([5] * 16)
    with pytest.raises(jitmk.ContextLengthError, match=r"10 tokens and max_new_tokens=7 .* at most 6"):
        model.stream([5] * 10, max_new_tokens=7)
    with pytest.raises(jitmk.ContextLengthError, match="17 tokens"):
        model.logits([5] * 17)
    assert isinstance(model.backend, ScriptedBackend) and model.backend.calls == []
    assert len(model.generate([5] * 10, max_new_tokens=6).token_ids) == 6


def test_without_a_limit_a_generation_ends_where_the_context_does() -> None:
    result = scripted_model("good", max_seq_len=16).generate([5] * 10)
    assert len(result.token_ids) == 6 and result.finish_reason == "length"


def test_logits_of_all_positions() -> None:
    logits = scripted_model("good").logits([5, 6, 7])
    assert logits.shape == (3, VOCABULARY) and logits.dtype is torch.float32


def test_a_model_without_tokenizer_takes_ids_only() -> None:
    model = scripted_model([5, 6], tokenizer=False)
    result = model.generate([5], max_new_tokens=4)
    assert result.token_ids == (5, 6, 5, 6) and result.text == ""
    with pytest.raises(jitmk.TokenizerError):
        model.generate("text")
    with pytest.raises(jitmk.TokenizerError):
        model.generate([5], stop="x")
    with pytest.raises(jitmk.TokenizerError):
        _ = model.tokenizer


def test_use_after_close_is_an_error_and_closing_twice_is_not() -> None:
    with scripted_model("good") as model:
        stream = model.stream("x")
    model.close()
    assert isinstance(model.backend, ScriptedBackend) and model.backend.closed
    for use in (lambda: model.generate("x"), lambda: model.logits([1]), lambda: next(stream)):
        with pytest.raises(jitmk.BackendError, match="closed"):
            use()
    assert "closed" in repr(model)


def test_a_model_may_be_closed_while_a_stream_is_half_read() -> None:
    model = scripted_model("good and evil")
    stream = model.stream("x", max_new_tokens=20)
    next(stream)
    model.close()
    with pytest.raises(jitmk.BackendError, match="closed"):
        next(stream)
    stream.close()


def test_one_thread_cannot_generate_in_the_middle_of_its_own_stream() -> None:
    model = scripted_model("good and evil")
    stream = model.stream("x", max_new_tokens=20)
    next(stream)
    with pytest.raises(jitmk.GenerationError, match="still being read"):
        model.generate("x")
    assert "".join(stream)
    assert model.generate("x", max_new_tokens=1)


def test_threads_take_turns() -> None:
    model = scripted_model("good and evil")
    stream = model.stream("x", max_new_tokens=20)
    next(stream)
    done = threading.Event()

    def other() -> None:
        model.generate("x", max_new_tokens=2)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert not done.wait(0.05)
    assert isinstance(model.backend, ScriptedBackend) and model.backend.calls.count("prefill") == 1
    list(stream)
    thread.join(10)
    assert done.is_set()


def test_after_an_error_the_backend_is_reset_and_the_model_goes_on() -> None:
    model = scripted_model("good and evil", fail_at=3)
    with pytest.raises(RuntimeError, match="scripted failure"):
        model.generate("x", max_new_tokens=10)
    assert isinstance(model.backend, ScriptedBackend) and model.backend.calls[-1] == "reset"
    assert len(model.generate("x", max_new_tokens=2).token_ids) == 2


def test_it_says_what_it_is() -> None:
    model = scripted_model("good")
    assert (model.backend_name, model.backend_reason) == ("torch", "a test wants it")
    assert "llama" in repr(model) and "torch on cpu" in repr(model)
