"""How a token is chosen: the parameters that users set, the processing of logits, and the draw.

Order of processing, as in transformers: repetition penalty; then, when sampling, temperature, top_k, top_p, min_p. Then

    token = argmax(processed logits + Gumbel noise(seed, position, token id))

which follows the softmax of the processed logits; without the noise (temperature 0) it is greedy. Of equal keys the
lowest token id wins. A filter leaves equal logits together, or none of them. Every backend draws in the same way (see
`engine/philox.py` and `reference/ops/sample_filter.py`); what needs the logits on the host is `needs_logits`.
"""

from __future__ import annotations

import difflib
import math
import operator
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from jitmk.engine.philox import gumbel
from jitmk.errors import ConfigError, GenerationError
from jitmk.reference.ops.sample_filter import NO_FILTERS, Filters, drops, largest_drop, share_of, weights

MIN_TEMPERATURE = 1e-4
"""Least temperature above 0. Below it, differences of bf16 logits are so large that a draw is greedy anyway."""

_KNOBS_OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""The parameters that only sampling uses, and their values when they do nothing."""

_UNSUPPORTED_OFF: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "typical_p": (1,),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({},),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
}
"""Settings of generation_config.json that change the tokens and that jitmk does not have, with the values that do
nothing (null does nothing either)."""


@dataclass(frozen=True)
class SamplingParams:
    """How to generate.

    Temperature 0 is greedy; then a top_k, top_p or min_p that would have restricted a draw is a contradiction, and an
    error. (top_k=1 is none: it is another way to say greedy.)

    Attributes:
        max_new_tokens: how many tokens at most, 1 or more.
        temperature: what logits are divided by before a draw: 0, or 1e-4 or more.
        top_k: draw among the k most probable tokens; 0 for all.
        top_p: draw among the fewest most probable tokens whose probabilities add up to this, in (0, 1].
        min_p: draw among the tokens that are at least this fraction as probable as the most probable one, in [0, 1].
        repetition_penalty: tokens seen before (the prompt's too) have positive logits divided by this and negative
            ones multiplied (arXiv:1909.05858); above 0, 1 for none. Applies to greedy decoding as well.
        seed: of the noise, in [0, 2^64). The same seed gives the same tokens.
        stop: texts that end generation when they appear; they are not part of the result. A single string will do.
        stop_token_ids: tokens that end generation.
        eos_token_ids: the model's own end-of-text tokens, which end generation as well; () ignores them.
        logprobs: report log probabilities of the chosen token and of this many most probable ones; None for none.

    Raises:
        GenerationError: a value that a parameter cannot have, or a contradiction.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._set("max_new_tokens", _integer("max_new_tokens", self.max_new_tokens, minimum=1))
        temperature = _number("temperature", self.temperature)
        if temperature != 0 and temperature < MIN_TEMPERATURE:
            raise GenerationError(
                f"temperature={temperature:g} must be 0 (greedy) or a number of at least {MIN_TEMPERATURE:g}"
            )
        self._set("temperature", temperature)
        self._set("top_k", _integer("top_k", self.top_k, minimum=0, hint="0 turns it off"))
        for name, low_allowed, low in (("top_p", False, "more than 0"), ("min_p", True, "0 or more")):
            value = _number(name, getattr(self, name))
            if not 0 <= value <= 1 or (value == 0 and not low_allowed):
                raise GenerationError(f"{name}={value:g} must be a probability: {low} and at most 1")
            self._set(name, value)
        penalty = _number("repetition_penalty", self.repetition_penalty)
        if penalty <= 0:
            raise GenerationError(f"repetition_penalty={penalty:g} must be more than 0; 1 turns it off")
        self._set("repetition_penalty", penalty)
        seed = _integer("seed", self.seed, minimum=0)
        if seed >= 2**64:
            raise GenerationError(f"seed={seed} must be less than 2^64")
        self._set("seed", seed)
        self._set("stop", _stop_strings(self.stop))
        for name in ("stop_token_ids", "eos_token_ids"):
            self._set(name, _token_ids(name, getattr(self, name)))
        if self.logprobs is not None:
            self._set("logprobs", _integer("logprobs", self.logprobs, minimum=0, hint="None turns it off"))
        self._check_contradictions()

    @classmethod
    def resolve(cls, generation_config: Mapping[str, Any], /, **user: Any) -> SamplingParams:
        """The parameters of one call: what the user says, else what generation_config.json says, else the defaults.

        - Generation samples when the user gives a temperature above 0, or gives none and the file says `do_sample`
          (at the file's temperature, else at 1). Otherwise it is greedy.
        - When it samples, the file's top_k, top_p and min_p hold where the user gives none; transformers' built-in
          top_k of 50 is not taken over. When it is greedy, they are of no account.
        - Without a seed a draw takes a new one; the result says which.
        - `max_length` is not read: it counts the prompt, which `max_new_tokens` does not.

        Args:
            generation_config: the parsed file, or {}.
            user: fields of this class; None counts as not given.

        Raises:
            GenerationError: an unknown name, an impossible value, a contradiction.
            ConfigError: an impossible value in generation_config.json.
        """
        given = {name: value for name, value in user.items() if value is not None}
        _refuse_unknown(given)
        values = _from_file(generation_config)
        samples = given["temperature"] != 0 if "temperature" in given else values["temperature"] != 0
        if not samples:
            values |= _KNOBS_OFF | {"temperature": 0.0}
        elif "seed" not in given:
            values["seed"] = secrets.randbits(64)
        return cls(**(values | given))

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature == 0

    @property
    def needs_logits(self) -> bool:
        """Whether the host must see the logits, a token at a time: for a penalty or for log probabilities.

        Greedy decoding and draws, with filters or without, are the backend's own (`DeviceSampling`).
        """
        return self.repetition_penalty != 1 or self.logprobs is not None

    @property
    def filters(self) -> Filters:
        """What a draw is restricted to; nothing when greedy."""
        return NO_FILTERS if self.greedy else Filters(self.top_k, self.top_p, self.min_p)

    @property
    def ending_token_ids(self) -> frozenset[int]:
        """Every token that ends generation."""
        return frozenset(self.eos_token_ids) | frozenset(self.stop_token_ids)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_contradictions(self) -> None:
        if not self.greedy:
            return
        at_odds = {name: getattr(self, name) for name, off in _KNOBS_OFF.items() if getattr(self, name) != off}
        if at_odds.get("top_k") == 1:
            del at_odds["top_k"]
        if at_odds:
            listed = ", ".join(f"{name}={value:g}" for name, value in at_odds.items())
            raise GenerationError(
                f"{listed} restricts a draw, but temperature=0 draws nothing: it takes the most probable token. "
                "Pass a temperature above 0 (1 leaves the model's probabilities as they are), or drop the restriction"
            )


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log probabilities by the model itself, before penalty, temperature and filters.

    Attributes:
        token: the chosen token. logprob: its log probability.
        top: (token, log probability) of the most probable ones, from the top.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def process_logits(logits: torch.Tensor, params: SamplingParams, previous_ids: Sequence[int]) -> torch.Tensor:
    """Penalty, temperature and filters.

    Args:
        logits: fp32 [vocab_size].
        params: what to apply.
        previous_ids: prompt and generated tokens, for the penalty.

    Returns:
        fp32 [vocab_size], -inf where a filter removed the token. `logits` is not changed.
    """
    if params.repetition_penalty != 1 and len(previous_ids):
        ids = torch.tensor(sorted(set(previous_ids)), dtype=torch.int64, device=logits.device)
        seen = logits[ids]
        penalty = params.repetition_penalty
        logits = logits.index_copy(0, ids, torch.where(seen < 0, seen * penalty, seen / penalty))
    if params.greedy:
        return logits
    original = logits
    if params.temperature != 1:
        logits = logits / params.temperature
    return logits.masked_fill(~leave(original, params.temperature, params.filters), -math.inf)


def leave(logits: torch.Tensor, temperature: float, filters: Filters) -> torch.Tensor:
    """The tokens that filters leave to draw from (`reference/ops/sample_filter.py` says which those are).

    Args:
        logits: fp32 [vocab_size], not yet divided by the temperature.
        temperature: above 0.

    Returns:
        bool [vocab_size]. Everything where the largest logit is no number above -inf.
    """
    left = torch.ones_like(logits, dtype=torch.bool)
    if not filters.active or not logits.max() > -math.inf:
        return left
    drop = drops(logits, temperature)
    if 0 < filters.top_k < len(logits):
        left = logits >= torch.topk(logits, filters.top_k).values[-1]
    if filters.top_p < 1:
        weight = torch.where(left, weights(drop), 0)
        descending, order = torch.sort(logits, descending=True)
        above = weight[order].cumsum(-1) - weight[order]
        enough = int((above < share_of(int(weight.sum()), filters.top_p)).sum())
        left &= logits >= descending[enough - 1]
    return left & (drop <= torch.tensor(largest_drop(filters.min_p), dtype=torch.float32, device=logits.device))


def sample(
    logits: torch.Tensor, params: SamplingParams, position: int, previous_ids: Sequence[int]
) -> tuple[int, TokenLogprobs | None]:
    """Chooses the next token.

    Args:
        logits: fp32 [vocab_size].
        params: how to choose.
        position: index in the sequence that the token will have: the length of `previous_ids`.
        previous_ids: prompt and generated tokens so far.

    Returns:
        The token, and its log probabilities if `params.logprobs` asks for them.

    Raises:
        GenerationError: the logits hold NaN, or nothing but -inf.
    """
    keys = process_logits(logits, params, previous_ids)
    if not params.greedy:
        keys = keys + gumbel(params.seed, position, len(keys), keys.device)
    best = keys.max()
    if best.isnan() or best == -math.inf:
        raise GenerationError(
            f"the model's logits for position {position} are not numbers: the weights, or a computation with them, "
            "overflowed"
        )
    # The first of equals: torch.argmax promises no order on every device.
    token = int((keys == best).nonzero()[0])
    return token, None if params.logprobs is None else _logprobs(logits, token, params.logprobs)


def _logprobs(logits: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    values = logits.log_softmax(-1)
    top = torch.topk(values, min(count, len(values)))
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprobs(token, float(values[token]), pairs)


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    names = [field.name for field in fields(SamplingParams)]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            if name == "do_sample":
                hint = "pass temperature=0 for greedy decoding, or a temperature above 0 to sample; "
            raise GenerationError(f"unknown argument {name}: {hint}known are {', '.join(names)}")


def _from_file(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that generation_config.json sets; temperature is always among them."""
    unsupported = {
        name: config[name]
        for name, off in _UNSUPPORTED_OFF.items()
        if config.get(name) is not None and config[name] not in off
    }
    if unsupported:
        listed = ", ".join(f"{name}={value!r}" for name, value in unsupported.items())
        warnings.warn(f"generation_config.json asks for {listed}, which jitmk does not have: ignored", stacklevel=3)
    names = ("max_new_tokens", "repetition_penalty", *_KNOBS_OFF)
    values: dict[str, Any] = {name: config[name] for name in names if config.get(name) is not None}
    eos = config.get("eos_token_id")
    if eos is not None:
        values["eos_token_ids"] = eos if isinstance(eos, (list, tuple)) else (eos,)
    temperature = config.get("temperature")
    values["temperature"] = (1.0 if temperature is None else temperature) if config.get("do_sample") else 0.0
    try:
        # Knobs may stand in a file that does not sample, so they are checked as if it did.
        SamplingParams(**(values | {"temperature": values["temperature"] or 1.0}))
    except GenerationError as error:
        raise ConfigError(f"generation_config.json: {error}") from None
    return values


def _integer(name: str, value: Any, *, minimum: int, hint: str = "") -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = minimum - 1
    if isinstance(value, bool) or number < minimum:
        raise GenerationError(f"{name}={value!r} must be an integer, {minimum} or more" + (f"; {hint}" if hint else ""))
    return number


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise GenerationError(f"{name}={value!r} must be a finite number")
    return number


def _stop_strings(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise GenerationError(f"stop={value!r} must be a string or a list of strings, none of them empty")
    return tuple(dict.fromkeys(texts))


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, set, frozenset)):
        raise GenerationError(f"{name}={value!r} must be a list of token ids")
    return tuple(dict.fromkeys(_integer(name, token, minimum=0) for token in value))
