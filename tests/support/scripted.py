"""A backend that says what it was told to: for tests of everything around a backend."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch

from jitmk.engine.backend import DeviceSampling
from jitmk.engine.model import Model
from jitmk.model.tokenizer import Tokenizer
from jitmk.models import bundled_model_dir
from tests.support.tiny import tiny_spec

VOCABULARY = 4096


@dataclass
class ScriptedBackend:
    """Implements `DecodeBackend`: the tokens after any prompt are `script`, over and over.

    Attributes:
        script: the tokens.
        calls: what was asked of it, in order. samplings: what each stream was asked for.
        fail_at: raises at the step that would yield this many tokens.
    """

    script: Sequence[int]
    max_seq_len: int = 64
    name: str = "torch"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fail_at: int | None = None
    calls: list[str] = field(default_factory=list)
    samplings: list[DeviceSampling] = field(default_factory=list)
    closed: bool = False
    _prompt_length: int = 0

    def prefill(self, ids: Sequence[int], start: int = 0, *, all_logits: bool = False) -> torch.Tensor:
        self.calls.append("prefill")
        self._prompt_length = start + len(ids)
        if all_logits:
            return torch.stack([self._logits(0)] * len(ids))
        return self._logits(0)

    def step_logits(self, token: int, position: int) -> torch.Tensor:
        self.calls.append("step_logits")
        return self._logits(position + 1 - self._prompt_length)

    def decode_stream(
        self, token: int, position: int, steps: int, sampling: DeviceSampling
    ) -> Generator[int, None, None]:
        self.calls.append("decode_stream")
        self.samplings.append(sampling)
        try:
            for at in range(position, position + steps):
                count = at + 1 - self._prompt_length
                if count == self.fail_at:
                    raise RuntimeError("scripted failure")
                yield self._token(count)
        finally:
            self.calls.append("decode_stream ends")

    def reset(self) -> None:
        self.calls.append("reset")

    def close(self) -> None:
        self.closed = True

    def _token(self, count: int) -> int:
        return self.script[count % len(self.script)]

    def _logits(self, count: int) -> torch.Tensor:
        logits = torch.zeros(VOCABULARY)
        logits[self._token(count)] = 30.0
        return logits


def bundled_tokenizer() -> Tokenizer:
    """The bundled model's tokenizer: bytes and pairs of them, 0 begins and 1 ends a text."""
    return Tokenizer.from_folder(bundled_model_dir())


def scripted_model(script: Sequence[int] | str, *, tokenizer: bool = True, **backend: object) -> Model:
    """A model that says `script`, a text or tokens, and whose end-of-text token is 1."""
    tokens = bundled_tokenizer().encode(script, add_special_tokens=False) if isinstance(script, str) else script
    return Model(
        tiny_spec(vocab_size=VOCABULARY, max_positions=64),
        ScriptedBackend(tokens, **backend),  # type: ignore[arg-type]
        bundled_tokenizer() if tokenizer else None,
        bundled_model_dir(),
        backend_reason="a test wants it",
        generation_config={"eos_token_id": 1},
    )
