"""What runs the decode steps of a live model: the protocol that every backend implements.

A backend owns the weights and the KV cache of one sequence. `Model` drives it:

    logits = backend.prefill(prompt)                          # the host samples the first token from these
    backend.decode_stream(first, len(prompt), n, sampling)    # the backend samples: greedy, or a filtered draw
    backend.step_logits(token, position)                      # one step, sampled by the host: penalties, logprobs

Position p of the cache holds the keys and values of the token at index p of prompt and generation together. A call
at position p requires that positions 0 to p - 1 were written, by prefill or by earlier steps, and overwrites what
was at p and after it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import torch

from jitmk.engine.sampling import SamplingParams, sample
from jitmk.reference.ops.sample_filter import NO_FILTERS, Filters


@dataclass(frozen=True)
class DeviceSampling:
    """The sampling that a backend does by itself, next to the LM head.

    Attributes:
        temperature: 0 takes the token with the largest logit (the lowest id of equals); above 0, the largest of
            logit / temperature + Gumbel noise.
        seed: key of the counter-based generator of the noise (`engine/philox.py`), 0 to 2**64 - 1. The noise of a
            candidate depends on the seed, the position that the new token will have, and the candidate's id alone.
        stop_tokens: token ids after which no more will be asked for: the stream may end behind one of them, so that
            steps that run ahead of the host end there as well.
        filters: what a draw is restricted to; of no account at temperature 0.
    """

    temperature: float = 0.0
    seed: int = 0
    stop_tokens: tuple[int, ...] = ()
    filters: Filters = NO_FILTERS

    @property
    def filtered(self) -> bool:
        """Whether there is a draw, and a restriction of it."""
        return self.temperature > 0 and self.filters.active


class DecodeBackend(Protocol):
    """The decode step of one model, batch 1. Not safe for use from two threads at once; `Model` holds a lock."""

    @property
    def name(self) -> str:
        """The name by which `load_model(backend=...)` selects it."""

    @property
    def device(self) -> torch.device:
        """Where logits are returned."""

    @property
    def max_seq_len(self) -> int:
        """Positions of the KV cache."""

    def prefill(self, ids: Sequence[int], start: int = 0, *, all_logits: bool = False) -> torch.Tensor:
        """Runs a prompt, or a piece of one, and fills the cache.

        Args:
            ids: at least one token id below vocab_size; start + len(ids) is at most max_seq_len.
            start: position of ids[0]; positions before it are in the cache already.
            all_logits: whether the logits of every token are wanted.

        Returns:
            fp32 [vocab_size] on `device`: the logits of the last token; with `all_logits`, fp32
            [len(ids), vocab_size] on the CPU.
        """

    def step_logits(self, token: int, position: int) -> torch.Tensor:
        """Decodes `token` at `position`; returns its logits, fp32 [vocab_size] on `device`.

        The tensor may be overwritten by the next call.
        """

    def decode_stream(
        self, token: int, position: int, steps: int, sampling: DeviceSampling
    ) -> Generator[int, None, None]:
        """Decodes `steps` tokens one after the other, sampling each from the logits of the one before.

        Step i decodes its input at `position` + i (the first input is `token`) and yields the token for
        `position` + i + 1. position + steps is at most max_seq_len.

        The caller may close the iterator early (at an end-of-text token, say). Steps that were already under way
        then finish or are cut short; what they wrote to the cache lies behind the last yielded token's position and
        is overwritten by later calls.
        """

    def reset(self) -> None:
        """Forgets the sequence, also after an error in the middle of a call."""

    def close(self) -> None:
        """Frees weights and cache. Closing twice is harmless."""


@runtime_checkable
class PhaseOutputs(Protocol):
    """A backend that can show what each phase of a step computed (`jitmk diff`)."""

    def phase_outputs(self, token: int, position: int) -> Mapping[str, torch.Tensor]:
        """Decodes `token` at `position` and returns every buffer of the program by name.

        Returns:
            fp32 [values] on the CPU for each buffer of kind BF16 or FP32, and "logits", fp32 [vocab_size].
        """

    def cached(self, layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (rotated) and values of the first positions, each [kv_heads, positions, head_dim] on the CPU."""


def sampled_stream(
    backend: DecodeBackend, token: int, position: int, steps: int, sampling: DeviceSampling
) -> Generator[int, None, None]:
    """`DecodeBackend.decode_stream` for backends whose tokens the host samples, from `step_logits`."""
    filters = asdict(sampling.filters) if sampling.filtered else {}
    params = SamplingParams(temperature=sampling.temperature, seed=sampling.seed, **filters)
    for at in range(position, position + steps):
        token, _ = sample(backend.step_logits(token, at), params, at + 1, ())
        yield token
