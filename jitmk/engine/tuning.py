"""What is free to choose for a model on a GPU, and where the choice comes from: the cost model, or `jitmk tune`.

A tuning changes when things happen and, in one case, what comes out: another number of splits adds up attention's
partial results in another order, so logits differ in their last bits, and where two tokens are that close, so does the
text. The same tuning gives the same bits; JITMK_TUNING=off gives those of the defaults.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jitmk.arch import GpuArch
from jitmk.codegen import has_first_look, max_window, ring_chunks
from jitmk.cuda.device import Device
from jitmk.engine.step_programs import kernel_variants
from jitmk.errors import ConfigError
from jitmk.jit import CacheWarning, KernelCache, tunings
from jitmk.jit.tunings import TuningKey
from jitmk.model.spec import ModelSpec
from jitmk.schedule.build import DEFAULT_POLICY
from jitmk.schedule.cost import choose_split_steps, first_look, load_window, load_window_ahead, split_ladder
from jitmk.schedule.policies import POLICIES
from jitmk.settings import Settings

Value = int | str


@dataclass(frozen=True)
class Tuning:
    """The choices for one model on one GPU, all of which any kernel of the model can run.

    Attributes:
        window: chunk loads that an SM keeps in flight; one more in the middle of a long instruction.
        window_ahead: the same while its ring is more than half full.
        first_look: cycles that a matvec lets pass before it first looks for its input, where that comes from a matvec
            with units of a warp's own (`MatvecConfig.behind_own_units`). No other model has use for it.
        policy: name of the policy that deals units to SMs.
        split_steps: (first context, splits): from so many positions in the cache on, attention splits them into so many
            parts. First contexts grow; the first is 0.
    """

    window: int
    window_ahead: int
    first_look: int
    policy: str
    split_steps: tuple[tuple[int, int], ...]

    def splits(self, context: int) -> int:
        """Into how many parts attention splits a context of that many positions."""
        return self.split_steps[bisect_right(self.split_steps, context, key=lambda step: step[0]) - 1][1]

    def splits_between(self, first: int, last: int) -> tuple[int, ...]:
        """The numbers of splits that contexts from `first` to `last` call for."""
        begins = [begin for begin, _ in self.split_steps if first < begin <= last]
        return tuple(dict.fromkeys(self.splits(context) for context in (first, *begins)))

    def __str__(self) -> str:
        knobs = [f"{knob.name} {getattr(self, knob.name)}" for knob in KNOBS]
        steps = [f"splits {self.split_steps[0][1]}", *(f"{n} from {first} on" for first, n in self.split_steps[1:])]
        return ", ".join([*knobs, *steps])


@dataclass(frozen=True)
class Knob:
    """A choice that holds for every context.

    To add one: a field of `Tuning`, a row of `KNOBS`, and what `MegakernelBackend.use` does about it.

    Attributes:
        name: the field of `Tuning`.
        default: what the cost model says.
        allowed: every value that this model can run with on this GPU, in an order in which neighbours are alike.
        reach: how many neighbours of the default on either side the tuner tries; None for all that there are.
    """

    name: str
    default: Callable[[ModelSpec, GpuArch], Value]
    allowed: Callable[[ModelSpec, GpuArch], Sequence[Value]]
    reach: int | None

    def candidates(self, spec: ModelSpec, arch: GpuArch, around: Value) -> tuple[Value, ...]:
        """The values that the tuner tries, `around` among them."""
        allowed = self.allowed(spec, arch)
        if self.reach is None:
            return tuple(allowed)
        place = allowed.index(around)
        return tuple(allowed[max(0, place - self.reach) : place + self.reach + 1])


def _windows(spec: ModelSpec, arch: GpuArch) -> range:
    return range(1, max(1, max_window(ring_chunks(kernel_variants(spec), arch))) + 1)


def _default_window(spec: ModelSpec, arch: GpuArch) -> int:
    return min(load_window(spec), _windows(spec, arch)[-1])


def _default_window_ahead(spec: ModelSpec, arch: GpuArch) -> int:
    return min(load_window_ahead(spec), _windows(spec, arch)[-1])


FIRST_LOOKS = (0, 200, 400, 600, 800, 1000)
"""Cycles: a look that goes to L2 and back takes some 700."""


def _first_looks(spec: ModelSpec, arch: GpuArch) -> Sequence[int]:
    """More than one where it makes a difference."""
    return FIRST_LOOKS if has_first_look(kernel_variants(spec), arch) else FIRST_LOOKS[:1]


def _default_first_look(spec: ModelSpec, arch: GpuArch) -> int:
    return min(first_look(spec, arch.sm_count), _first_looks(spec, arch)[-1])


KNOBS = (
    Knob("window", _default_window, _windows, reach=2),
    Knob("window_ahead", _default_window_ahead, _windows, reach=1),
    Knob("first_look", _default_first_look, _first_looks, reach=1),
    Knob("policy", lambda spec, arch: DEFAULT_POLICY, lambda spec, arch: tuple(POLICIES), reach=None),
)
"""Every choice but that of the splits."""


def default_tuning(spec: ModelSpec, arch: GpuArch, max_seq_len: int) -> Tuning:
    """What the cost model says, for a KV cache of `max_seq_len` positions."""
    values: dict[str, Any] = {knob.name: knob.default(spec, arch) for knob in KNOBS}
    return Tuning(split_steps=choose_split_steps(spec, arch.sm_count, max_seq_len), **values)


def parse_tuning(values: Mapping[str, Any], spec: ModelSpec, arch: GpuArch) -> Tuning:
    """A tuning from the JSON object that `dataclasses.asdict` made of one.

    Raises:
        ConfigError: a choice is missing, unknown, or not one that this model has on this GPU.
    """
    names = {field.name for field in fields(Tuning)}
    if values.keys() != names:
        raise ConfigError(
            f"a tuning has {', '.join(sorted(names))}, but this one has {', '.join(sorted(values)) or 'nothing'}"
        )
    for knob in KNOBS:
        value, allowed = values[knob.name], knob.allowed(spec, arch)
        if type(value) is not type(allowed[0]) or value not in allowed:
            shown = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
            raise ConfigError(f"{knob.name} = {value!r} is not possible; allowed is {shown}")
    steps = _parse_steps(values["split_steps"], split_ladder(spec, arch.sm_count))
    return Tuning(split_steps=steps, **{knob.name: values[knob.name] for knob in KNOBS})


def _parse_steps(steps: Any, ladder: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The checked split_steps of a tuning."""
    if not isinstance(steps, list | tuple) or not steps:
        raise ConfigError(f"split_steps = {steps!r} is not a list of [first context, splits]")
    checked: list[tuple[int, int]] = []
    for step in steps:
        if not isinstance(step, list | tuple) or [type(number) for number in step] != [int, int]:
            raise ConfigError(f"{step!r} in split_steps is not [first context, splits]")
        first, splits = step
        if splits not in ladder:
            raise ConfigError(f"{splits} splits are not possible here; allowed is {', '.join(map(str, ladder))}")
        if (first != 0) if not checked else (first <= checked[-1][0]):
            raise ConfigError(f"the first contexts of split_steps = {steps!r} must begin with 0 and grow")
        checked.append((first, splits))
    return tuple(checked)


def find_tuning(spec: ModelSpec, gpu: Device, kernel: str, max_seq_len: int, settings: Settings) -> tuple[Tuning, str]:
    """The tuning of a kernel on a GPU: the stored one if there is one that can be used, else the default.

    Args:
        kernel: the kernel's key in the cache.

    Returns:
        The tuning, and in words where it comes from. A stored one that cannot be used is warned about.
    """
    default = default_tuning(spec, gpu.arch, max_seq_len)
    if not settings.tuning:
        return default, "cost model, for JITMK_TUNING=off"
    record = tunings.load(KernelCache.from_settings(settings), tuning_key(gpu, kernel))
    if record is None:
        return default, "cost model"
    try:
        return parse_tuning(record.values, spec, gpu.arch), "jitmk tune"
    except ConfigError as error:
        warnings.warn(
            f"the stored tuning of kernel {kernel[:16]} is not used, the defaults are: {error}. Run jitmk tune again",
            CacheWarning,
            stacklevel=2,
        )
        return default, "cost model, for the stored tuning is unusable"


def tuning_key(gpu: Device, kernel: str) -> TuningKey:
    """By what the tuning of a kernel on a GPU is found."""
    return TuningKey(kernel, gpu.name, gpu.arch.sm_count)
