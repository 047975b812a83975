"""Whether the megakernel computes what it should, at full size: its logits and tokens against fp32 on the same GPU.

    python -m benchmarks.numerics --models llama-3.2-1b,llama-3.1-8b --contexts 1,127,128,129,4096,8192 --json out.json

The truth is the same weights in fp32 through transformers; what transformers' own bf16 path is off by is what jitmk may
be off by (relative error over all logits, mean KL divergence). Tokens must be the truth's wherever its two best logits
are further apart than bf16 moves them. Exits with 1 where any of that does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import describe
from benchmarks.shapes import CONFIGS
from jitmk.cuda.device import Device
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.megakernel import MegakernelBackend
from jitmk.model.checkpoint import Checkpoint, RandomCheckpoint, WeightSource
from jitmk.model.families import LoadedFamily, spec_from_config
from jitmk.model.files import read_config
from jitmk.model.spec import ModelSpec
from jitmk.model.tensors import put
from jitmk.models import BUNDLED_MODEL_NAME, bundled_model_dir
from jitmk.program.weights import plan_weights
from jitmk.settings import get_settings


@dataclass(frozen=True)
class Decoded:
    """What jitmk made of one prompt: token ids, and the logits that each generated one was taken from.

    Attributes:
        prompt, generated: token ids.
        logits: fp32 [len(generated), vocab_size] on the CPU; row 0 comes from prefill, the others from the megakernel.
    """

    prompt: list[int]
    generated: list[int]
    logits: torch.Tensor


@dataclass(frozen=True)
class Record:
    """One prompt's comparison with the truth.

    Attributes:
        error, kl: of jitmk; bf16_error, bf16_kl: of transformers in bf16.
        decided: tokens whose margin in the truth exceeds what bf16 moved any logit by, twice.
        wrong: of those, how many jitmk chose otherwise.
    """

    model: str
    context: int
    tokens: int
    error: float
    bf16_error: float
    kl: float
    bf16_kl: float
    decided: int
    wrong: int

    @property
    def holds(self) -> bool:
        """Whether jitmk is at least as close to the truth as bf16 is, and decides as it does."""
        return self.error <= self.bf16_error and self.kl <= self.bf16_kl and self.wrong == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__.splitlines()[0])
    names = (*CONFIGS, BUNDLED_MODEL_NAME)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(names), help=", ".join(names))
    parser.add_argument("--contexts", type=lambda text: [int(n) for n in text.split(",")], default=[1, 127, 128, 129])
    parser.add_argument("--tokens", type=int, default=256, help="generated tokens a prompt (default 256)")
    parser.add_argument("--json", type=Path, help="where to write the records")
    args = parser.parse_args(arguments)
    gpu = Device.open()
    records = []
    for name in args.models:
        records += compare(gpu, name, args.contexts, args.tokens)
    if args.json is not None:
        content = {"environment": describe(gpu), "records": [asdict(r) | {"holds": r.holds} for r in records]}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    failed = [record for record in records if not record.holds]
    print(f"{len(records) - len(failed)} of {len(records)} prompts hold")
    return 1 if failed else 0


def compare(gpu: Device, name: str, contexts: Sequence[int], tokens: int) -> list[Record]:
    """Decodes with jitmk, then runs the same tokens through transformers in bf16 and in fp32."""
    config, source = _model(name)
    family = spec_from_config(config)
    contexts = [context for context in contexts if context + tokens <= family.spec.max_positions]
    decoded = _decode_all(gpu, family.spec, source, contexts, tokens)
    bf16 = _transformers_logits(config, family, source, decoded, torch.bfloat16)
    truth = _transformers_logits(config, family, source, decoded, torch.float32)
    records = []
    for made, rounded, true in zip(decoded, bf16, truth, strict=True):
        record = _record(name, made, rounded, true)
        records.append(record)
        print(
            f"{name} at {record.context}: error {record.error:.5f} (bf16 {record.bf16_error:.5f}), "
            f"KL {record.kl:.2e} (bf16 {record.bf16_kl:.2e}), {record.wrong} of {record.decided} decided tokens wrong"
            + ("" if record.holds else "  FAILED"),
            flush=True,
        )
    return records


def _model(name: str) -> tuple[dict[str, Any], WeightSource]:
    if name == BUNDLED_MODEL_NAME:
        config = read_config(bundled_model_dir())
        return config, Checkpoint.open(bundled_model_dir(), spec_from_config(config))
    return CONFIGS[name], RandomCheckpoint(spec_from_config(CONFIGS[name]).spec, seed=1, device="cuda")


def _decode_all(
    gpu: Device, spec: ModelSpec, source: WeightSource, contexts: Sequence[int], tokens: int
) -> list[Decoded]:
    length = max(contexts) + tokens
    backend = MegakernelBackend(
        spec, plan_weights(spec), source, gpu, max_seq_len=length, settings=get_settings(), progress=False
    )
    decoded = [_decode(backend, spec, context, tokens) for context in contexts]
    backend.close()
    return decoded


def _decode(backend: MegakernelBackend, spec: ModelSpec, context: int, tokens: int) -> Decoded:
    """Greedy tokens as a user gets them, and then the same tokens again, step by step, with their logits."""
    generator = torch.Generator().manual_seed(context)
    prompt = torch.randint(spec.vocab_size, (context,), generator=generator).tolist()
    first_logits = backend.prefill(prompt).cpu()
    first = int(first_logits.argmax())
    generated = [first, *backend.decode_stream(first, context, tokens - 1, DeviceSampling())]
    step_logits = backend.forced_logits(generated[:-1], context)
    if step_logits.argmax(-1).tolist() != generated[1:]:
        raise SystemExit(f"at context {context} the sampled tokens are not those of the largest logits")
    return Decoded(prompt, generated, torch.cat((first_logits[None], step_logits)))


def _transformers_logits(
    config: dict[str, Any], family: LoadedFamily, source: WeightSource, decoded: Sequence[Decoded], dtype: torch.dtype
) -> list[torch.Tensor]:
    """fp32 [len(generated), vocab_size] on the CPU for each prompt, from one forward pass of all its tokens."""
    import transformers

    classes: Any = transformers  # without types
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = classes.AutoModelForCausalLM.from_config(classes.AutoConfig.for_model(**config))
    torch.set_default_dtype(torch.float32)
    parameters = dict(model.named_parameters())
    with torch.inference_mode():
        for key, reference in family.tensors.items():
            put(parameters[reference.name], reference, source.tensor(key))
        model.train(False)
        logits = []
        for made in decoded:
            ids = torch.tensor([made.prompt + made.generated[:-1]], device="cuda")
            logits.append(model(ids, logits_to_keep=len(made.generated)).logits[0].float().cpu())
    del model, parameters
    torch.cuda.empty_cache()
    return logits


def _record(name: str, made: Decoded, rounded: torch.Tensor, true: torch.Tensor) -> Record:
    best = true.topk(2, dim=-1)
    margin = best.values[:, 0] - best.values[:, 1]
    decided = margin > 2 * (rounded - true).abs().amax(-1)
    wrong = decided & (best.indices[:, 0] != torch.tensor(made.generated))
    return Record(
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


if __name__ == "__main__":
    sys.exit(main())
