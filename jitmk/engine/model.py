"""A live model: what `jitmk.load_model` returns."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from jitmk.engine.backend import DecodeBackend
from jitmk.engine.generation import NoText, TextDecoder, TextStream, text_decoder
from jitmk.engine.result import GenerationResult
from jitmk.engine.sampling import SamplingParams
from jitmk.errors import BackendError, ContextLengthError, GenerationError
from jitmk.model.spec import ModelSpec
from jitmk.model.tokenizer import Tokenizer, missing_tokenizer

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""A text, token ids, or chat messages: {"role": ..., "content": ...}."""


class Model:
    """A model with its weights, ready to generate. A context manager; `close` frees what it holds.

    It holds one sequence at a time. Calls from several threads wait for each other; a thread that is still reading a
    stream cannot begin another generation.

    Attributes:
        spec: what the model computes.
        folder: where its files are.
        backend_reason: why `backend_name` was taken, for people to read.
        generation_config: the defaults of `generate`, as generation_config.json gives them.
    """

    def __init__(
        self,
        spec: ModelSpec,
        backend: DecodeBackend,
        tokenizer: Tokenizer | None,
        folder: Path,
        *,
        backend_reason: str = "",
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self._tokenizer = tokenizer
        self.backend_reason = backend_reason
        self.generation_config = dict(generation_config or {})
        self._backend = backend
        self._turns = threading.Lock()
        self._holder: int | None = None
        self._closed = False

    @property
    def backend_name(self) -> str:
        """ "megakernel", "reference" or "torch"."""
        return self._backend.name

    @property
    def backend(self) -> DecodeBackend:
        """What runs the steps, for tests and tools. `generate` and `stream` hold a lock; this does not."""
        return self._backend

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back. Raises TokenizerError if the model has none: it then takes token ids only."""
        if self._tokenizer is None:
            raise missing_tokenizer(self.folder)
        return self._tokenizer

    @property
    def max_seq_len(self) -> int:
        """The longest prompt and generation together, in tokens."""
        return self._backend.max_seq_len

    def generate(self, prompt: Prompt, **sampling: Any) -> GenerationResult:
        """Continues a prompt.

        Args:
            prompt: a text, token ids, or chat messages.
            sampling: fields of `SamplingParams`: max_new_tokens, temperature, top_k, top_p, min_p,
                repetition_penalty, seed, stop, stop_token_ids, eos_token_ids, logprobs. What is not given comes from
                generation_config.json, else from the defaults; without a max_new_tokens, generation also ends where
                the context does.

        Raises:
            GenerationError: an argument that does not exist, has a value that it cannot have, or contradicts another;
                an empty prompt.
            ContextLengthError: prompt and max_new_tokens do not fit into `max_seq_len`.
            TokenizerError: messages were given, and the model has no chat template.
            KernelTimeoutError: the kernel stopped.
            BackendError: the model is closed.
        """
        stream = self.stream(prompt, **sampling)
        for _ in stream:
            pass
        return stream.result

    def stream(self, prompt: Prompt, **sampling: Any) -> TextStream:
        """Like `generate`, but an iterator of text pieces; its `result` is there when they are read.

        Arguments and prompt are checked here, before the first piece is asked for.
        """
        self._require_open()
        ids = self.encode(prompt)
        params = SamplingParams.resolve(self.generation_config, **sampling)
        asked_for = sampling.get("max_new_tokens") is not None
        params = self._fit(len(ids), params, asked_for)
        decoder: TextDecoder = NoText()
        if self._tokenizer is not None:
            decoder = text_decoder(self._tokenizer, ids if isinstance(prompt, str) else ())
        elif params.stop:
            raise missing_tokenizer(self.folder)
        recompute_after = self.spec.recompute_after
        return TextStream(self._backend, decoder, ids, params, self._turn(), self._require_open, recompute_after)

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The logits after every token of a sequence, fp32 [len(ids), vocab_size] on the CPU.

        Raises:
            GenerationError: no ids, or one that the model does not have.
            ContextLengthError: more ids than `max_seq_len`.
            BackendError: the model is closed.
        """
        self._require_open()
        ids = self._check_ids(ids)
        if len(ids) > self.max_seq_len:
            raise ContextLengthError(f"{len(ids)} tokens do not fit into the context of {self.max_seq_len}")
        with self._turn():
            return self._backend.prefill(ids, all_logits=True)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids that `generate` makes of a prompt; raises as `generate` does."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt) if prompt else []
        elif _are_messages(prompt):
            ids = self.tokenizer.encode_chat(prompt)  # type: ignore[arg-type]
        else:
            ids = prompt  # type: ignore[assignment]
        return self._check_ids(ids)

    def close(self) -> None:
        """Frees the weights and the cache. Waits for what other threads are generating. Closing twice is harmless."""
        if self._closed:
            return
        # This thread may be in the middle of a stream: nobody will wait for that to end.
        with nullcontext() if self._holder == threading.get_ident() else self._turn():
            self._closed = True
            self._backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.backend_name} on {self._backend.device}"
        return f"<jitmk.Model {self.spec.family}, {self.spec.parameters / 1e6:.3g} M parameters, {state}>"

    def _fit(self, prompt_tokens: int, params: SamplingParams, asked_for: bool) -> SamplingParams:
        """Refuses what does not fit into the context; shortens a max_new_tokens that nobody asked for."""
        room = self.max_seq_len - prompt_tokens
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {prompt_tokens} tokens, and the context {self.max_seq_len}: there is no room for a "
                "new token. Shorten the prompt, or load the model with a larger max_seq_len if it allows one"
            )
        if params.max_new_tokens <= room:
            return params
        if not asked_for:
            return replace(params, max_new_tokens=room)
        raise ContextLengthError(
            f"the prompt's {prompt_tokens} tokens and max_new_tokens={params.max_new_tokens} do not fit into the "
            f"context of {self.max_seq_len}: ask for at most {room}, or shorten the prompt"
        )

    def _check_ids(self, ids: Sequence[int]) -> list[int]:
        checked = []
        for position, token in enumerate(ids):
            try:
                value = operator.index(token)
            except TypeError:
                raise GenerationError(f"prompt[{position}] is {token!r}, but token ids are integers") from None
            if not 0 <= value < self.spec.vocab_size:
                raise GenerationError(
                    f"prompt[{position}] is token {value}, but the model's tokens are 0 to {self.spec.vocab_size - 1}"
                )
            checked.append(value)
        if not checked:
            raise GenerationError("the prompt is empty: pass a text, token ids or chat messages of at least one token")
        return checked

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Holds the backend. Waits for other threads; refuses a thread that holds it already: it would wait forever."""
        if self._holder == threading.get_ident():
            raise GenerationError(
                "a stream of this model is still being read by this thread: read it to its end or close it first"
            )
        with self._turns:
            self._require_open()
            self._holder = threading.get_ident()
            try:
                yield
            except BaseException as error:
                if not isinstance(error, GeneratorExit):
                    with suppress(Exception):  # the first error is the one to tell
                        self._backend.reset()
                raise
            finally:
                self._holder = None

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError("the model is closed; load it again")


def _are_messages(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
