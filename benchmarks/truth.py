"""Whether a model that is about to be measured computes what it should: its tokens and logits against fp32.

The truth is the same weights in fp32 through transformers; what transformers' own bf16 path is off by is what jitmk may
be off by. Tokens must be the truth's wherever its two best logits are further apart than bf16 moves them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from benchmarks.records import BenchmarkError, Comparison
from jitmk.engine.backend import DeviceSampling
from jitmk.model.checkpoint import WeightSource
from jitmk.model.families import spec_from_config
from jitmk.model.spec import ModelSpec, Role, RopeKind
from jitmk.model.tensors import put


class SteppedBackend(Protocol):
    """What a comparison needs of a backend; `MegakernelBackend` is one."""

    def prefill(self, ids: Sequence[int]) -> torch.Tensor:
        """As `DecodeBackend.prefill`."""

    def decode_stream(
        self, token: int, position: int, steps: int, sampling: DeviceSampling
    ) -> Generator[int, None, None]:
        """As `DecodeBackend.decode_stream`."""

    def forced_logits(self, ids: Sequence[int], start: int) -> torch.Tensor:
        """As `MegakernelBackend.forced_logits`."""


@dataclass(frozen=True)
class Decoded:
    """What a backend made of one prompt: token ids, and the logits that each generated one was taken from.

    Attributes:
        prompt, generated: token ids.
        logits: fp32 [len(generated), vocab_size] on the CPU; row 0 comes from prefill, the others from decode steps.
    """

    prompt: list[int]
    generated: list[int]
    logits: torch.Tensor


def random_prompt(vocab_size: int, context: int) -> list[int]:
    """The prompt of that many tokens that every benchmark uses."""
    generator = torch.Generator().manual_seed(context)
    ids: list[int] = torch.randint(vocab_size, (context,), generator=generator).tolist()
    return ids


def decode(backend: SteppedBackend, vocab_size: int, context: int, tokens: int) -> Decoded:
    """Greedy tokens as a user gets them, and then the same tokens again, step by step, with their logits.

    Raises:
        BenchmarkError: the sampled tokens are not those of the largest logits.
    """
    prompt = random_prompt(vocab_size, context)
    first_logits = backend.prefill(prompt).cpu()
    first = int(first_logits.argmax())
    generated = [first, *backend.decode_stream(first, context, tokens - 1, DeviceSampling())]
    step_logits = backend.forced_logits(generated[:-1], context)
    if step_logits.argmax(-1).tolist() != generated[1:]:
        raise BenchmarkError(f"at context {context} the sampled tokens are not those of the largest logits")
    return Decoded(prompt, generated, torch.cat((first_logits[None], step_logits)))


def compare(
    name: str, config: Mapping[str, Any], source: WeightSource, decoded: Sequence[Decoded], device: torch.device
) -> list[Comparison]:
    """Runs the tokens through transformers in bf16 and in fp32, one after the other; prints each comparison.

    Args:
        name: for the comparisons.
        config: config.json of any family. source: its weights.
        decoded: what the backend made of the prompts.
        device: where transformers runs; it needs 4 bytes a weight there.
    """
    rounded, true = (
        _transformers_logits(config, source, decoded, dtype, device) for dtype in (torch.bfloat16, torch.float32)
    )
    comparisons = [_comparison(name, *row) for row in zip(decoded, rounded, true, strict=True)]
    for comparison in comparisons:
        print(comparison, flush=True)
    return comparisons


def has_truth(spec: ModelSpec, context: int, tokens: int) -> bool:
    """Whether decoding `tokens` behind a prompt is one pass over all of them, which is what the truth is.

    It is not where rotary frequencies depend on the length of the sequence and change while it is generated: keys stay
    in the cache as they were rotated, and one pass rotates all of them alike.
    """
    length = context + tokens - 1  # the last token is not an input
    for rope in spec.ropes:
        if length > rope.original_max_positions and (
            rope.kind is RopeKind.DYNAMIC or (rope.kind is RopeKind.LONGROPE and context <= rope.original_max_positions)
        ):
            return False
    return True


def require_transformers() -> None:
    """Raises BenchmarkError where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise BenchmarkError(
            "nothing is measured that was not compared with transformers first, and transformers is not installed: "
            "run pip install -e '.[bench]'"
        )


def transformers_model(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A model of transformers with random weights, made where it is to run, ready to be run.

    Its attention is torch's SDPA, but for models of which transformers says that they need its own (soft caps).

    Args:
        config: config.json of any family. dtype, device: of the weights.
    """
    import transformers

    classes: Any = transformers  # without types
    with device:
        # The type is said, because a config may name another one; a copy is given, because its dicts are written to.
        copied = classes.AutoConfig.for_model(**deepcopy(dict(config)))
        model = classes.AutoModelForCausalLM.from_config(copied, dtype=dtype)
    model.train(False)
    return model


def _transformers_logits(
    config: Mapping[str, Any],
    source: WeightSource,
    decoded: Sequence[Decoded],
    dtype: torch.dtype,
    device: torch.device,
) -> list[torch.Tensor]:
    """fp32 [len(generated), vocab_size] on the CPU for each prompt, from one forward pass of all its tokens."""
    model = transformers_model(config, dtype, device)
    parameters = dict(model.named_parameters())
    logits = []
    with torch.inference_mode():
        for key, reference in spec_from_config(config).tensors.items():
            tensor, stored = source.tensor(key), parameters[reference.name]
            # The context is cut to what is measured, and with it the table of learned positions.
            put(stored[: len(tensor)] if key.role is Role.POSITION_EMBEDDING else stored, reference, tensor)
        for made in decoded:
            ids = torch.tensor([made.prompt + made.generated[:-1]], device=device)
            logits.append(model(ids, use_cache=False, logits_to_keep=len(made.generated)).logits[0].float().cpu())
    del model, parameters
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return logits


def _comparison(name: str, made: Decoded, rounded: torch.Tensor, true: torch.Tensor) -> Comparison:
    best = true.topk(2, dim=-1)
    margin = best.values[:, 0] - best.values[:, 1]
    decided = margin > 2 * (rounded - true).abs().amax(-1)
    wrong = decided & (best.indices[:, 0] != torch.tensor(made.generated))
    return Comparison(
        model=name,
        context=len(made.prompt),
        tokens=len(made.generated),
        error=_relative_error(made.logits, true),
        bf16_error=_relative_error(rounded, true),
        kl=_mean_kl(made.logits, true),
        bf16_kl=_mean_kl(rounded, true),
        decided=int(decided.sum()),
        wrong=int(wrong.sum()),
    )


def _relative_error(logits: torch.Tensor, true: torch.Tensor) -> float:
    return float((logits - true).double().norm() / true.double().norm())


def _mean_kl(logits: torch.Tensor, true: torch.Tensor) -> float:
    """Mean over tokens of KL(true || logits), in nats."""
    p, q = true.double().log_softmax(-1), logits.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
