"""Text to token ids and back, by the tokenizer.json of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jitmk.errors import GenerationError, TokenizerError
from jitmk.model.files import read_json

if TYPE_CHECKING:
    from jitmk.model.chat import ChatTemplate
    from jitmk.model.detokenizer import StreamDecoder

TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_SPECIAL_FILE = "special_tokens_map.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a model's folder, or None where there is none: the model then takes token ids only.

    Raises:
        TokenizerError: there is one, and it is malformed.
    """
    return Tokenizer.from_folder(folder) if (folder / TOKENIZER_FILE).is_file() else None


def missing_tokenizer(folder: Path) -> TokenizerError:
    """The error for a use of text with a model that has no tokenizer."""
    reason = f"{folder} has no {TOKENIZER_FILE}"
    if (folder / "tokenizer.model").is_file():
        reason += (
            "; it has a tokenizer.model, from which transformers makes one: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return TokenizerError(f"{reason}: pass token ids instead of text")


class Tokenizer:
    """A checkpoint's tokenizer: what its tokenizer.json says, which is what transformers' AutoTokenizer computes, but:

    - transformers 5 rebuilds the tokenizers of class LlamaTokenizer with rules of its own, which change the ids of
      texts that begin with spaces or hold special tokens; jitmk keeps to the file, as transformers 4 did;
    - spaces before punctuation are kept when decoding (`clean_up_tokenization_spaces` corrupts text);
    - special tokens that the vocabulary lacks get no new ids, for which the model would have no embedding.

    Which tokens go around a text is in the file as well: add_bos_token and add_eos_token in tokenizer_config.json are
    not read, as they are not by transformers 5.

    Args:
        backend: a `tokenizers.Tokenizer`.
        special_tokens: texts of bos_token, eos_token and the like, by those names.
        templates: chat templates by name.
    """

    def __init__(
        self, backend: Any, special_tokens: Mapping[str, str], templates: Mapping[str, str] | None = None
    ) -> None:
        self._backend = backend
        self._special_tokens = dict(special_tokens)
        self._templates = dict(templates or {})
        self._chat: ChatTemplate | None = None
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        self._byte_ids = self._find_byte_ids()

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat template.

        Raises:
            TokenizerError: tokenizer.json is missing, or a file is malformed.
        """
        from tokenizers import Tokenizer as Backend

        from jitmk.model.chat import read_chat_template

        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise missing_tokenizer(folder)
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # tokenizers raises Exception itself
            raise TokenizerError(f"{path} is not a tokenizer that this version of tokenizers reads: {error}") from error
        config = _optional(folder / _CONFIG_FILE)
        special = _special_tokens(_optional(folder / _SPECIAL_FILE) | _without_nulls(config), folder)
        backend.no_truncation()
        backend.no_padding()
        _add_tokens(backend, config, special, folder)
        return cls(backend, special, read_chat_template(folder, config))

    @property
    def vocab_size(self) -> int:
        """Token ids are below this, added tokens included. A model may have room for more."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the special tokens, by names such as bos_token."""
        return dict(self._special_tokens)

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text, if there is one."""
        return self.token_to_id(self._special_tokens.get("bos_token"))

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a text, if there is one."""
        return self.token_to_id(self._special_tokens.get("eos_token"))

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can be used."""
        return bool(self._templates)

    def token_to_id(self, token: str | None) -> int | None:
        """The id of a token by its text in the vocabulary, or None."""
        found = None if token is None else self._backend.token_to_id(token)
        return None if found is None else int(found)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Special tokens that stand in the text become those tokens.

        Args:
            text: any text.
            add_special_tokens: add what the tokenizer puts around a text, such as a bos token.

        Raises:
            GenerationError: `text` is not a string, or not valid Unicode.
        """
        if not isinstance(text, str):
            raise GenerationError(f"text must be a string, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise GenerationError(f"the text is not valid Unicode: {error}") from error
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids. Bytes that are not UTF-8 become U+FFFD; ids without a token are left out.

        Raises:
            TokenizerError: an id is not an integer in [0, 2^32).
        """
        try:
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))
        except (TypeError, OverflowError) as error:
            raise TokenizerError(f"token ids must be integers of 0 or more: {error}") from error

    def stream_decoder(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        from jitmk.model.detokenizer import StreamDecoder

        def is_silent(token: int) -> bool:
            return (skip_special_tokens and token in self._special_ids) or self._backend.id_to_token(token) is None

        return StreamDecoder(lambda ids: self.decode(ids, skip_special_tokens), is_silent, self._byte_ids)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation, ready for the model to answer.

        Args:
            messages: a dict each with "role" and "content".
            options: see `ChatTemplate.render`.

        Raises:
            GenerationError: the messages are malformed, or the template refuses them.
            TokenizerError: the model has no chat template, or it fails.
        """
        return self.encode(self.chat_template.render(messages, **options), add_special_tokens=False)

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template; one that renders nothing but an error where there is none."""
        if self._chat is None:
            from jitmk.model.chat import ChatTemplate

            self._chat = ChatTemplate(self._templates, self._special_tokens)
        return self._chat

    def _find_byte_ids(self) -> frozenset[int]:
        """Ids of the tokens that stand for one byte each (SentencePiece's byte fallback), which decode together."""
        decoder = self._backend.decoder
        if decoder is None or b"ByteFallback" not in decoder.__getstate__():
            return frozenset()
        ids = (self._backend.token_to_id(token) for token in _BYTE_TOKENS)
        return frozenset(id for id in ids if id is not None)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, TokenizerError) if path.is_file() else {}


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _content(value: Any) -> str | None:
    """The text of a token, which configs give as a string or as an object."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _special_tokens(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    special = {}
    for name in _NAMED:
        if config.get(name) is not None:
            text = _content(config[name])
            if text is None:
                raise TokenizerError(f"{folder / _CONFIG_FILE}: {name}={config[name]!r} is not a token")
            special[name] = text
    return special


def _add_tokens(backend: Any, config: Mapping[str, Any], special: Mapping[str, str], folder: Path) -> None:
    """Makes sure that the backend knows the tokens that tokenizer_config.json adds, and which ones are special."""
    from tokenizers import AddedToken

    listed = config.get("added_tokens_decoder") or {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        by_id = sorted((int(id), entry) for id, entry in listed.items())
        added = [(id, AddedToken(e["content"], **{f: bool(e[f]) for f in flags if f in e})) for id, e in by_id]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{folder / _CONFIG_FILE}: added_tokens_decoder is malformed: {error!r}") from error
    known = backend.get_added_tokens_decoder()
    for id, token in added:
        if id in known and known[id].content == token.content:
            continue
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != id:
            raise TokenizerError(
                f"{folder / _CONFIG_FILE}: token {token.content!r} has id {id} there, but "
                f"{backend.token_to_id(token.content)} by {TOKENIZER_FILE}: the two files do not belong together"
            )
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    names = [*special.values(), *(_content(value) for value in (extra if isinstance(extra, list) else []))]
    for name in names:
        if name is not None and backend.token_to_id(name) is not None:
            backend.add_special_tokens([AddedToken(name, special=True, normalized=False)])
