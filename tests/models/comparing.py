"""jitmk beside transformers: the same tokens through both, prompt and decoded ones, and what the one may be off by."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.support.checkpoints import TinyCheckpoint, load_transformers
from tests.support.truth import mean_kl, relative_error

PROMPT, STEPS = 40, 64
"""Past every window of the checkpoints before decoding begins, and past the rest while it goes on."""

DTYPES = (torch.float32, torch.bfloat16)

NO_DIVERGENCE = 1e-12
"""Nats that are nothing: some roundings of fp64, where one token has all the probability."""


@dataclass(frozen=True)
class Case:
    """A checkpoint, tokens for it, and what transformers makes of them in fp32 and bf16.

    Attributes:
        max_seq_len: what `load_model` needs to be told.
        prompt, decoded: logits, fp32 [tokens, vocab_size] by the type that transformers ran in.
    """

    folder: Path
    max_seq_len: int | None
    ids: list[int]
    prompt: dict[torch.dtype, torch.Tensor]
    decoded: dict[torch.dtype, torch.Tensor]

    @classmethod
    def write(cls, checkpoint: TinyCheckpoint, folder: Path) -> Case:
        """Makes the checkpoint, and runs it through transformers."""
        checkpoint.write(folder)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(checkpoint.config["vocab_size"], (PROMPT + STEPS,), generator=generator).tolist()
        prompt, decoded = {}, {}
        for dtype in DTYPES:
            prompt[dtype], decoded[dtype] = transformers_logits(folder, dtype, ids)
        # Only dynamic rope may go past max_position_embeddings, which is then the context before it was extended.
        dynamic = "dynamic" in checkpoint.name
        return cls(folder, PROMPT + STEPS if dynamic else None, ids, prompt, decoded)

    @property
    def noise(self) -> float:
        """By how much bf16 moves a logit at most."""
        return float((self.decoded[torch.bfloat16] - self.decoded[torch.float32]).abs().max())


@torch.inference_mode()
def transformers_logits(
    folder: Path, dtype: torch.dtype, ids: list[int], *, generated: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the prompt, and of the other tokens decoded one by one with a cache; fp32.

    If they were `generated`, Phi-3's cache is computed anew where they pass the original context of its LongRoPE, as
    transformers' `generate` does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about configs that it reads, not about what it computes
        model = load_transformers(folder, dtype)
    out = model(torch.tensor([ids[:PROMPT]]), use_cache=True)
    prompt, cache, rows = out.logits[0].float(), out.past_key_values, []
    original = getattr(model.config, "original_max_position_embeddings", None)
    for length, token in enumerate(ids[PROMPT:], PROMPT + 1):
        if generated and original is not None and length == original + 1:
            out = model(torch.tensor([ids[:length]]), use_cache=True)  # other frequencies from here on
            cache = out.past_key_values
        else:
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        rows.append(out.logits[0, -1].float())
    return prompt, torch.stack(rows)


def assert_at_least_as_close(logits: torch.Tensor, reference: dict[torch.dtype, torch.Tensor]) -> None:
    """The logits are no further from the truth than transformers' bf16 is, in both measures."""
    truth, bf16 = reference[torch.float32], reference[torch.bfloat16]
    assert logits.dtype is torch.float32 and logits.shape == truth.shape
    assert relative_error(logits, truth) <= relative_error(bf16, truth)
    assert mean_kl(logits, truth) <= max(mean_kl(bf16, truth), NO_DIVERGENCE)


def assert_chosen_where_clear(tokens: list[int], chosen_from: torch.Tensor, noise: float) -> None:
    """Greedy tokens are the truth's wherever its two best logits are further apart than bf16 can move them.

    Args:
        tokens: what was generated.
        chosen_from: the truth's logits, given the prompt and the tokens before: fp32 [len(tokens), vocab_size].
        noise: by how much bf16 moves a logit.
    """
    top = chosen_from.topk(2)
    clear = top.values[:, 0] - top.values[:, 1] > 2 * noise
    assert clear.sum() >= len(tokens) // 4, "the model leaves too few clear choices for this test to say anything"
    assert torch.equal(top.indices[clear, 0], torch.tensor(tokens)[clear])
