"""The optimisation: AdamW, linear warm-up, cosine decay, and the weights of the best validation loss."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm

from jitmk.models.training.corpus import Corpus
from jitmk.models.training.evaluate import held_out_loss
from jitmk.models.training.network import build_network, logits_of
from jitmk.models.training.recipe import Recipe
from jitmk.models.training.windows import WindowSampler


@dataclass(frozen=True)
class TrainingOutcome:
    """The network with the weights that did best on the validation chapters, and how they came about."""

    network: nn.Module
    best_step: int
    validation_curve: tuple[tuple[int, float], ...]
    """(step, validation loss in nats a token), as measured along the way."""
    epochs: float
    """Passes over the training text up to `best_step`."""
    seconds: float


def train(
    corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe, device: torch.device, *, strict: bool
) -> TrainingOutcome:
    """Train a network from scratch.

    With `strict`, or on a CPU, the same recipe, machine and torch release give the same weights; torch then raises
    RuntimeError where it has no deterministic kernel. Otherwise attention on a GPU may add gradients in any order.
    """
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    # cuDNN's attention has no deterministic backward pass; flash attention has one.
    torch.backends.cuda.enable_cudnn_sdp(False)
    network = build_network(recipe).to(device)
    sampler = WindowSampler(corpus.train, tokenizer, recipe)
    optimizer = _optimizer(network, recipe, device)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))
    best_loss, best_step, best_weights = math.inf, 0, _snapshot(network)
    curve: list[tuple[int, float]] = []
    began = time.perf_counter()
    progress = tqdm(range(1, recipe.steps + 1), desc="training", unit="step", mininterval=1.0)
    for step in progress:
        network.train()
        with _autocast(device):
            loss = _window_loss(network, sampler.draw(recipe.batch_size).to(device))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            with _autocast(device):
                measured = held_out_loss(network, tokenizer, corpus.validation, recipe.context, device).per_token
            curve.append((step, measured))
            tqdm.write(f"step {step}: training loss {loss.item():.4f}, validation loss {measured:.4f} nats a token")
            if measured < best_loss:
                best_loss, best_step, best_weights = measured, step, _snapshot(network)
    network.load_state_dict(best_weights)
    epochs = best_step * recipe.batch_size * recipe.context / sampler.token_count
    return TrainingOutcome(network.eval(), best_step, tuple(curve), epochs, time.perf_counter() - began)


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Return the share of the peak learning rate for the 0-based step: linear up, then half a cosine to zero."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def _window_loss(network: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of ids [batch, context + 1]."""
    logits = logits_of(network, windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _optimizer(network: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW that decays matrices and leaves the norms' gains alone."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda")


def _autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 matrix products on a GPU; plain fp32 on a CPU, where bf16 is slower on many machines."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _snapshot(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
