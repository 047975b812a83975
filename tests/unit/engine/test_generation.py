from __future__ import annotations

import gc

import pytest

import jitmk
from jitmk.engine.generation import text_decoder
from jitmk.engine.result import FinishReason
from jitmk.reference.ops.sample_filter import Filters
from tests.support.scripted import ScriptedBackend, bundled_tokenizer, scripted_model

MULTI_BYTE = "naïve façade — 日本語 🙂👩‍👧 Ω"


def backend_of(model: jitmk.Model) -> ScriptedBackend:
    assert isinstance(model.backend, ScriptedBackend)
    return model.backend


def test_the_pieces_of_a_stream_are_the_text_of_generate() -> None:
    model = scripted_model("And God saw that it was good. ")
    result = model.generate("In the beginning", max_new_tokens=30)
    stream = model.stream("In the beginning", max_new_tokens=30)
    assert "".join(stream) == result.text
    assert stream.result.token_ids == result.token_ids
    assert len(result.token_ids) == 30 and result.finish_reason == "length"
    assert result.prompt_tokens == len(model.encode("In the beginning"))


def test_characters_of_several_tokens_come_whole() -> None:
    tokens = bundled_tokenizer().encode(MULTI_BYTE, add_special_tokens=False)
    model = scripted_model([*tokens, 1])
    pieces = list(model.stream("x", max_new_tokens=60))
    assert "".join(pieces) == MULTI_BYTE
    assert len(pieces) > 10
    assert not any("�" in piece for piece in pieces)


def test_a_character_that_is_never_finished_is_shown_as_such_at_the_end() -> None:
    tokens = bundled_tokenizer().encode("a🙂", add_special_tokens=False)
    result = scripted_model(tokens[:-1]).generate("x", max_new_tokens=len(tokens) - 1)
    assert result.text == "a�"


def test_an_end_of_text_token_ends_it_and_is_not_text() -> None:
    model = scripted_model([*bundled_tokenizer().encode("good", add_special_tokens=False), 1])
    result = model.generate("It was", max_new_tokens=20)
    assert result.text == "good" and result.token_ids[-1] == 1
    assert result.finish_reason is FinishReason.STOP
    assert backend_of(model).calls[-1] == "decode_stream ends", "the backend must hear that the rest is not wanted"


def test_the_first_token_may_be_the_end() -> None:
    result = scripted_model([1]).generate("x", max_new_tokens=20)
    assert (result.text, result.token_ids, result.finish_reason) == ("", (1,), "stop")
    assert result.timings.ms_per_token is None and result.timings.tokens_per_second is None


def test_a_stop_token_of_the_user_ends_it() -> None:
    tokens = bundled_tokenizer().encode("one two three", add_special_tokens=False)
    result = scripted_model(tokens).generate("x", max_new_tokens=20, stop_token_ids=[tokens[1]])
    assert result.token_ids == tuple(tokens[:2]) and result.finish_reason == "stop"


@pytest.mark.parametrize("stop", ["wat", ["zzz", "waters"], ". And"])
def test_a_stop_string_ends_it_and_is_not_text(stop: str | list[str]) -> None:
    text = "upon the face of the waters. And God said"
    model = scripted_model(text)
    result = model.generate("x", max_new_tokens=40, stop=stop)
    expected = min((text.split(s)[0] for s in ([stop] if isinstance(stop, str) else stop)), key=len)
    assert result.text == expected and result.finish_reason == "stop"
    assert "".join(model.stream("x", max_new_tokens=40, stop=stop)) == expected


def test_the_beginning_of_a_stop_string_at_the_end_is_text() -> None:
    result = scripted_model("good").generate("x", max_new_tokens=1, stop="good morning")
    assert "good morning".startswith(result.text) and result.text and result.finish_reason == "length"


def test_draws_are_left_to_the_backend_and_what_needs_logits_is_not() -> None:
    model = scripted_model("good")
    model.generate("x", max_new_tokens=3, temperature=1.0, seed=1)
    model.generate("x", max_new_tokens=3, temperature=0.5, seed=2, top_k=4, top_p=0.9, min_p=0.1)
    plain, filtered = backend_of(model).samplings
    assert (plain.temperature, plain.seed, plain.filtered) == (1.0, 1, False)
    assert (filtered.temperature, filtered.seed, filtered.filters) == (0.5, 2, Filters(4, 0.9, 0.1))
    assert "step_logits" not in backend_of(model).calls
    backend_of(model).calls.clear()
    model.generate("x", max_new_tokens=3, repetition_penalty=1.1, temperature=1.0, top_k=4)
    assert backend_of(model).calls == ["prefill", "step_logits", "step_logits"]
    backend_of(model).calls.clear()
    result = model.generate("x", max_new_tokens=3, logprobs=2)
    assert backend_of(model).calls == ["prefill", "step_logits", "step_logits"]
    assert result.logprobs is not None and len(result.logprobs) == 3
    assert [entry.token for entry in result.logprobs] == list(result.token_ids)
    assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in result.logprobs)


def test_a_stream_has_no_result_before_its_end() -> None:
    stream = scripted_model("good").stream("x", max_new_tokens=3)
    next(stream)
    with pytest.raises(jitmk.GenerationError, match="no result yet"):
        _ = stream.result


def test_closing_a_stream_ends_it_with_what_there_is() -> None:
    model = scripted_model("good and evil ")
    with model.stream("x", max_new_tokens=30) as stream:
        first = next(stream)
    assert list(stream) == []
    assert stream.result.text == first and stream.result.finish_reason == "closed"
    assert model.generate("x", max_new_tokens=2).finish_reason == "length"


def test_closing_a_stream_that_was_read_changes_nothing() -> None:
    stream = scripted_model("good").stream("x", max_new_tokens=3)
    list(stream)
    stream.close()
    assert stream.result.finish_reason == "length"


def test_a_stream_that_was_never_read_ran_nothing() -> None:
    model = scripted_model("good")
    stream = model.stream("x", max_new_tokens=3)
    stream.close()
    assert backend_of(model).calls == [] and stream.result.token_ids == ()


def test_a_stream_that_is_dropped_lets_go_of_the_model_without_the_garbage_collector() -> None:
    model = scripted_model("good and evil ")
    gc.disable()
    try:
        for _ in model.stream("x", max_new_tokens=30):
            break
        assert model.generate("x", max_new_tokens=2).finish_reason == "length"
    finally:
        gc.enable()


def test_text_after_a_prompt_keeps_the_space_that_a_text_of_its_own_would_lose() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    from jitmk.model.tokenizer import Tokenizer

    # Like SentencePiece: words carry their space, and decoding strips the first one.
    vocabulary = {"▁In": 0, "▁the": 1, "▁beginning": 2}
    backend = Backend(models.WordLevel(vocabulary, unk_token="▁In"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = Tokenizer(backend, {})
    assert text_decoder(tokenizer).push(1) == "the"
    assert text_decoder(tokenizer, [0]).push(1) == " the"


def test_a_prompt_that_ends_within_a_character_leaves_no_trace() -> None:
    tokenizer = bundled_tokenizer()
    half = tokenizer.encode("🙂", add_special_tokens=False)[:-1]
    assert text_decoder(tokenizer, half).push(tokenizer.encode("a", add_special_tokens=False)[0]) == "a"
