"""One generation: from a prompt's token ids to a stream of text pieces and a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from jitmk.engine.backend import DecodeBackend, DeviceSampling
from jitmk.engine.result import FinishReason, GenerationResult, Timings
from jitmk.engine.sampling import SamplingParams, TokenLogprobs, sample
from jitmk.engine.stopping import StopMatcher
from jitmk.errors import GenerationError
from jitmk.model.tokenizer import Tokenizer

_Choice = tuple[int, TokenLogprobs | None]

_CONTEXT_TOKENS = 16
"""Tokens at the end of a prompt that may change the text of the first ones after it."""


class TextDecoder(Protocol):
    """Turns tokens into text, one at a time; `StreamDecoder` is one."""

    def push(self, token: int) -> str:
        """The text that a token completes."""

    def flush(self) -> str:
        """The rest of the text, at the end."""


class NoText:
    """The decoder of a model that has no tokenizer."""

    def push(self, token: int) -> str:
        """No text."""
        return ""

    def flush(self) -> str:
        """No text."""
        return ""


def text_decoder(tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> TextDecoder:
    """A decoder for what follows a prompt.

    Some tokenizers drop the space in front of a text's first word. With the prompt's tokens, that word is not the
    first one any more, so that prompt and text can be put together as they are.
    """
    decoder = tokenizer.stream_decoder()
    context = prompt[-_CONTEXT_TOKENS:]
    if "".join(map(decoder.push, context)) == tokenizer.decode(context):
        return decoder
    # The prompt ends in the middle of something: its rest must not become part of the text.
    return tokenizer.stream_decoder()


def choose_tokens(
    backend: DecodeBackend, ids: Sequence[int], params: SamplingParams, recompute_after: int | None = None
) -> Generator[_Choice, None, None]:
    """The tokens that follow a prompt, `params.max_new_tokens` of them; who reads them looks for ends of text.

    Greedy decoding and draws are left to the backend; what needs the logits (penalties, log probabilities) goes through
    the host, token by token. Both draw with the same noise, and filter alike.

    Args:
        recompute_after: see `ModelSpec.recompute_after`.
    """
    previous = list(ids)
    last = len(ids) + params.max_new_tokens
    switch = last if recompute_after is None else recompute_after + 1
    while True:
        # All that there is so far is (again) a prompt.
        token, logprobs = sample(backend.prefill(previous), params, len(previous), previous)
        previous.append(token)
        yield token, logprobs
        end = switch if len(previous) <= switch < last else last
        for token, logprobs in _decode(backend, previous, end - len(previous), params):
            previous.append(token)
            yield token, logprobs
        if end == last or token in params.ending_token_ids:
            return


def _decode(
    backend: DecodeBackend, previous: Sequence[int], steps: int, params: SamplingParams
) -> Generator[_Choice, None, None]:
    """`steps` tokens behind `previous`, of which the cache has all but the last; the caller adds them to it."""
    if params.needs_logits:
        for _ in range(steps):
            logits = backend.step_logits(previous[-1], len(previous) - 1)
            yield sample(logits, params, len(previous), previous)
        return
    sampling = DeviceSampling(params.temperature, params.seed, tuple(params.ending_token_ids), params.filters)
    with closing(backend.decode_stream(previous[-1], len(previous) - 1, steps, sampling)) as stream:
        for token in stream:
            yield token, None


class TextStream:
    """The pieces of a text as they are generated, and the result once they are all read.

    Iterate over it, or close it early (it is a context manager too). Nothing runs before the first piece is asked
    for. Pieces hold whole characters, and joined they are the result's text.

    Args:
        backend: what runs the model; it is this stream's from the first piece to the last.
        decoder: turns tokens into text.
        ids: the prompt.
        params: how to choose tokens, and when to end; prompt and tokens fit into the backend.
        turn: is entered while the backend is used.
        check: is called before each piece, and raises when there can be no more.
        recompute_after: as for `choose_tokens`.
    """

    def __init__(
        self,
        backend: DecodeBackend,
        decoder: TextDecoder,
        ids: Sequence[int],
        params: SamplingParams,
        turn: AbstractContextManager[None],
        check: Callable[[], None],
        recompute_after: int | None = None,
    ) -> None:
        self._check = check
        self._record = _Record(len(ids), params)
        choices = choose_tokens(backend, ids, params, recompute_after)
        # The generator must not refer to this object: a stream that is dropped half read is freed, and ends, at once.
        self._pieces = _pieces(choices, decoder, params, turn, self._record)

    @property
    def result(self) -> GenerationResult:
        """The result. Raises GenerationError while there are pieces to read."""
        if self._record.finished is None:
            raise GenerationError("the stream has no result yet: read it to its end, or close it")
        return self._record.result()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._record.finished is None:
            self._check()
        return next(self._pieces)

    def close(self) -> None:
        """Ends the generation here, with the finish reason "closed" unless it had ended already."""
        self._pieces.close()
        if self._record.finished is None:
            self._record.finished = FinishReason.CLOSED

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class _Record:
    """What is known of a generation so far; times are in seconds."""

    prompt_tokens: int
    params: SamplingParams
    begun: float = 0.0
    token_times: tuple[float, float] = (0.0, 0.0)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finished: FinishReason | None = None

    def add(self, token: int, logprobs: TokenLogprobs | None) -> None:
        now = time.perf_counter()
        self.token_times = (self.token_times[0] if self.tokens else now, now)
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)

    def result(self) -> GenerationResult:
        first, last = self.token_times
        later = len(self.tokens) - 1
        return GenerationResult(
            text="".join(self.text),
            token_ids=tuple(self.tokens),
            prompt_tokens=self.prompt_tokens,
            finish_reason=self.finished or FinishReason.CLOSED,
            seed=self.params.seed,
            timings=Timings(
                prefill_ms=1000 * (first - self.begun) if self.tokens else 0.0,
                ms_per_token=1000 * (last - first) / later if later > 0 else None,
            ),
            logprobs=None if self.params.logprobs is None else tuple(self.logprobs),
        )


def _pieces(
    choices: Generator[_Choice, None, None],
    decoder: TextDecoder,
    params: SamplingParams,
    turn: AbstractContextManager[None],
    record: _Record,
) -> Generator[str, None, None]:
    """Text as it becomes certain; ends at the first stop token or stop string."""
    matcher = StopMatcher(params.stop)
    ends = params.ending_token_ids
    reason = FinishReason.LENGTH
    with turn, closing(choices):
        record.begun = time.perf_counter()
        for token, logprobs in choices:
            record.add(token, logprobs)
            if token in ends:
                reason = FinishReason.STOP
                break
            piece = matcher.push(decoder.push(token))
            if piece:
                record.text.append(piece)
                yield piece
            if matcher.matched is not None:
                reason = FinishReason.STOP
                break
    # What was held back in case it would become a whole character or a stop string.
    rest = matcher.push(decoder.flush()) + matcher.flush()
    record.finished = FinishReason.STOP if matcher.matched is not None else reason
    if rest:
        record.text.append(rest)
        yield rest
