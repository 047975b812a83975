"""What a generation returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from jitmk.engine.sampling import TokenLogprobs


class FinishReason(str, Enum):
    """Why a generation ended. Compares equal to its string."""

    STOP = "stop"  # an end-of-text token, a stop token or a stop string
    LENGTH = "length"  # max_new_tokens, or the end of the context
    CLOSED = "closed"  # the stream was closed before its end

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Timings:
    """How long a generation took, by the host's clock, the detokenizer included.

    Attributes:
        prefill_ms: from the start to the first token, in milliseconds.
        ms_per_token: mean of the tokens after the first, in milliseconds; None if there was one token only. For a
            stream, it includes what the reader of the stream did between two pieces.
    """

    prefill_ms: float
    ms_per_token: float | None

    @property
    def tokens_per_second(self) -> float | None:
        """Decoded tokens a second, without prefill; None if there was one token only."""
        return 1000 / self.ms_per_token if self.ms_per_token else None


@dataclass(frozen=True)
class GenerationResult:
    """A finished generation.

    Attributes:
        text: the generated text, without the prompt, special tokens and the stop string.
        token_ids: every token that was generated, the one that ended the generation included.
        prompt_tokens: length of the prompt in tokens.
        finish_reason: "stop", "length" or "closed".
        seed: the seed that was used; passing it again gives the same tokens.
        timings: how long it took.
        logprobs: one entry for each token, if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    seed: int
    timings: Timings
    logprobs: tuple[TokenLogprobs, ...] | None = None
