"""Tokenizers against transformers' AutoTokenizer, and streams against decoding at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from jitmk.errors import GenerationError, TokenizerError
from jitmk.model.tokenizer import Tokenizer, load_tokenizer, missing_tokenizer
from tests.unit.model.tokenizers_for_tests import KINDS, write_tokenizer

TEXTS = [
    "",
    " ",
    "The quick brown fox",
    "  two leading spaces, and trailing  ",
    "line\nbreaks\n\n\tand tabs",
    "<s>in band</s> and <unk>",
    "naïve 你好 😀👩‍👩‍👧 привет 🇩🇪",
    "zqx ' s n't . , !",
]


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), request.param)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def both(folder: Path) -> tuple[Tokenizer, Any]:
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add", [True, False])
def test_ids_are_those_of_transformers(ours: Tokenizer, theirs: Any, text: str, add: bool) -> None:
    ids = ours.encode(text, add_special_tokens=add)
    assert ids == theirs.encode(text, add_special_tokens=add)
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=40))
def test_any_text_survives(ours: Tokenizer, theirs: Any, text: str) -> None:
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    if not any(token in text for token in ("<s>", "</s>", "<unk>", "<|eot|>")):
        assert ours.decode(ids) == text


@settings(deadline=None, max_examples=400)
@given(st.data(), st.booleans())
def test_streamed_pieces_add_up_for_any_ids(ours: Tokenizer, theirs: Any, data: st.DataObject, skip: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size + 5), max_size=40))
    decoder = ours.stream_decoder(skip)
    pieces = [decoder.push(token) for token in ids]
    pieces.append(decoder.flush())
    assert "".join(pieces) == ours.decode(ids, skip)
    assert "".join(pieces) == theirs.decode(
        [token for token in ids if token < ours.vocab_size], skip_special_tokens=skip
    )
    assert decoder.flush() == ""


@settings(deadline=None, max_examples=150)
@given(st.text("aé你😀 \n.the", max_size=30))
def test_streamed_pieces_of_valid_text_are_whole_characters(ours: Tokenizer, text: str) -> None:
    decoder = ours.stream_decoder()
    pieces = [decoder.push(token) for token in ours.encode(text)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + decoder.flush() == text


def test_streaming_does_not_wait_without_need(ours: Tokenizer) -> None:
    decoder = ours.stream_decoder()
    ids = ours.encode("The quick brown fox 😀", add_special_tokens=False)
    shown = ""
    for count, token in enumerate(ids, 1):
        shown += decoder.push(token)
        if not ours.decode(ids[:count]).endswith("\ufffd") and "😀" not in ours.decode(ids[:count]):
            assert shown == ours.decode(ids[:count])


def test_invalid_bytes_at_the_end_are_flushed(ours: Tokenizer) -> None:
    whole = ours.encode("a😀", add_special_tokens=False)
    decoder = ours.stream_decoder()
    shown = "".join(decoder.push(token) for token in whole[:-1])
    assert shown == "a"
    assert decoder.flush() == ours.decode(whole[:-1])[1:] != ""


def test_long_streams_keep_a_short_window(ours: Tokenizer) -> None:
    lengths: list[int] = []
    decoder = ours.stream_decoder()
    decode = decoder._decode
    decoder._decode = lambda ids: lengths.append(len(ids)) or decode(ids)  # type: ignore[func-returns-value]
    for token in ours.encode("The quick brown fox, naïve 你好 😀 again. " * 50):
        decoder.push(token)
    assert max(lengths) < 60


def test_special_tokens_and_sizes(ours: Tokenizer, theirs: Any) -> None:
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)
    assert ours.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert ours.token_to_id("no such token") is None


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(
    "config",
    [
        {"add_bos_token": False},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_eos_token": True},
        {"add_bos_token": True, "bos_token": None},
        {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "special": True}},
        {"additional_special_tokens": ["▁the"]},
        {"pad_token": "</s>", "unk_token": "<unk>"},
        {"model_max_length": 4},
    ],
)
def test_settings_of_tokenizer_config(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    if kind == "byte level" and "unk_token" in config:
        config = {"pad_token": "</s>"}
    ours, theirs = both(write_tokenizer(tmp_path, kind, **config))
    for text in TEXTS:
        for add in (True, False):
            assert ours.encode(text, add_special_tokens=add) == theirs.encode(text, add_special_tokens=add), text
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("legacy", [True, False])
def test_the_llama_class_of_transformers(tmp_path: Path, legacy: bool) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "unk_token": "<unk>", "add_bos_token": True}
    ours, theirs = both(write_tokenizer(tmp_path, "byte fallback", **config))
    for text in ("The quick brown fox", "naïve 你好 😀 words\n\nlines", "a  b   c "):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text


def test_tokens_that_only_the_config_adds(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "byte level")
    size = Tokenizer.from_folder(tmp_path).vocab_size
    added = {
        str(size): {"content": "<|extra|>", "special": True, "normalized": False},
        str(size + 1): {"content": "<plain>", "special": False, "lstrip": True},
        "0": {"content": "<s>", "special": True},
    }
    ours, theirs = both(write_tokenizer(tmp_path, "byte level", added_tokens_decoder=added))
    text = "a <|extra|> b <plain>"
    assert ours.encode(text) == theirs.encode(text)
    assert {size, size + 1} <= set(ours.encode(text))
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    write_tokenizer(tmp_path, "byte level", added_tokens_decoder={str(size + 7): {"content": "<|extra|>"}})
    with pytest.raises(TokenizerError, match=rf"'<\|extra\|>' has id {size + 7} there, but {size}"):
        Tokenizer.from_folder(tmp_path)


def test_special_tokens_map_fills_in(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "byte level", eos_token=None)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|eot|>"}}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.special_tokens == {"eos_token": "<|eot|>", "bos_token": "<s>"}
    assert tokenizer.eos_id == tokenizer.token_to_id("<|eot|>")


def test_truncation_and_padding_in_the_file_are_switched_off(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "byte level")
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert len(Tokenizer.from_folder(tmp_path).encode("one two three four five")) > 3


def test_chat_messages_are_encoded_as_transformers_does(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}<|eot|>{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|eot|>assistant: {% endif %}"
    )
    ours, theirs = both(write_tokenizer(tmp_path, "byte level", chat_template=template))
    messages = [{"role": "user", "content": "Hello 😀"}]
    assert ours.has_chat_template
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(messages) == expected
    plain = Tokenizer.from_folder(write_tokenizer(tmp_path, "byte level"))
    assert not plain.has_chat_template
    with pytest.raises(TokenizerError, match="no chat template"):
        plain.encode_chat(messages)


@pytest.mark.parametrize("bad", [None, b"bytes", 5, ["list"], "\ud800"])
def test_what_is_not_text_is_refused(ours: Tokenizer, bad: Any) -> None:
    with pytest.raises(GenerationError):
        ours.encode(bad)


@pytest.mark.parametrize("bad", [[-1], ["a"], [2**40], [1.5]])
def test_what_is_not_an_id_is_refused(ours: Tokenizer, bad: Any) -> None:
    with pytest.raises(TokenizerError, match="token ids must be integers"):
        ours.decode(bad)


def test_a_missing_tokenizer_says_to_pass_ids(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None
    assert "pass token ids instead" in str(missing_tokenizer(tmp_path))
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json: pass token ids"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    assert "AutoTokenizer" in str(missing_tokenizer(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not json"),
        ("tokenizer_config.json", "["),
        ("tokenizer_config.json", '{"bos_token": 5}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": "a"}}'),
        ("special_tokens_map.json", "[]"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    write_tokenizer(tmp_path, "byte level")
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=name if name != "special_tokens_map.json" else "must hold an object"):
        load_tokenizer(tmp_path)
