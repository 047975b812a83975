"""What a tuning may be, what the defaults are, and which of the two a model gets."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.engine.step_programs import kernel_variants
from jitmk.engine.tuning import KNOBS, Tuning, default_tuning, find_tuning, parse_tuning, tuning_key
from jitmk.errors import ConfigError
from jitmk.jit import CacheWarning, KernelCache, tunings
from jitmk.jit.tunings import TuningRecord
from jitmk.settings import Settings
from tests.support.shapes import llama
from tests.support.tiny import tiny_spec

H200 = GpuArch.parse("sm_90a")
SPEC = llama(2048, 8192, 2, 32, 8, 64, vocab_size=1000)
GOOD: dict[str, Any] = {
    "window": 2,
    "window_ahead": 2,
    "first_look": 0,
    "policy": "wave",
    "split_steps": [[0, 1], [100, 2], [500, 16]],
}
KERNEL = "ab" * 32


def test_splits_follow_the_context() -> None:
    tuning = Tuning(3, 2, 400, "round_robin", ((0, 1), (100, 4), (500, 2)))
    assert [tuning.splits(context) for context in (0, 1, 99, 100, 499, 500, 10**6)] == [1, 1, 1, 4, 4, 2, 2]
    assert str(tuning) == (
        "window 3, window_ahead 2, first_look 400, policy round_robin, splits 1, 4 from 100 on, 2 from 500 on"
    )


@pytest.mark.parametrize("arch", GpuArch.supported())
@pytest.mark.parametrize("spec", [SPEC, tiny_spec(), llama(4096, 8192, 1, 32, 1, 128, vocab_size=1000)])
def test_defaults_and_candidates_are_allowed(spec: Any, arch: str) -> None:
    gpu = GpuArch.parse(arch)
    default = default_tuning(spec, gpu, 131072)
    assert parse_tuning(asdict(default), spec, gpu) == default
    for knob in KNOBS:
        candidates = knob.candidates(spec, gpu, getattr(default, knob.name))
        assert getattr(default, knob.name) in candidates and len(set(candidates)) == len(candidates)
        for value in candidates:
            parse_tuning({**asdict(default), knob.name: value}, spec, gpu)


def test_defaults_are_what_was_measured_on_an_h200() -> None:
    assert default_tuning(SPEC, H200, 300) == Tuning(3, 2, 0, "level", ((0, 1),))
    assert default_tuning(SPEC, H200, 8192).splits(8192) == 16


def test_narrow_models_may_look_later() -> None:
    """The default is 600 cycles where an SM has more than four units of gate_up."""
    for intermediate, cycles in ((4 * 132 * 4, 0), (4 * 132 * 4 + 4, 600)):
        spec = llama(1024, intermediate, 2, 16, 8, 64, vocab_size=1000)
        default = default_tuning(spec, H200, 300)
        assert default.first_look == cycles
        assert parse_tuning({**asdict(default), "first_look": 200}, spec, H200).first_look == 200
    assert default_tuning(spec, GpuArch.parse("sm_120a"), 300).first_look == 0  # where warps have no units of their own


def test_json_comes_back() -> None:
    assert parse_tuning(GOOD, SPEC, H200) == Tuning(2, 2, 0, "wave", ((0, 1), (100, 2), (500, 16)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window = 0 is not possible; allowed is 1 to"),
        ({"window": 40}, "window = 40"),
        ({"window": True}, "window = True"),
        ({"window": 3.0}, "window = 3.0"),
        ({"window": None}, "window = None"),
        ({"first_look": 200}, "first_look = 200 is not possible; allowed is 0"),
        ({"policy": "dice"}, "policy = 'dice' is not possible; allowed is level, round_robin, "),
        ({"policy": 3}, "policy = 3"),
        ({"policy": ["wave"]}, "policy = "),
        ({"split_steps": [[0, 5]]}, "5 splits are not possible here; allowed is 1, 2, 4, 6, 8, 12, 16"),
        ({"split_steps": [[0, 32]]}, "32 splits"),
        ({"split_steps": [[1, 1]]}, "begin with 0 and grow"),
        ({"split_steps": [[0, 1], [500, 2], [400, 4]]}, "begin with 0 and grow"),
        ({"split_steps": [[0, 1], [0, 2]]}, "begin with 0 and grow"),
        ({"split_steps": []}, "is not a list of"),
        ({"split_steps": 3}, "is not a list of"),
        ({"split_steps": [[0, 1, 2]]}, "is not .first context, splits."),
        ({"split_steps": [[0, True]]}, "is not .first context, splits."),
        ({"split_steps": [7]}, "is not .first context, splits."),
        ({"speed": 9}, "this one has first_look, policy, speed, split_steps, window"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_tuning({**GOOD, **change}, SPEC, H200)


def test_a_choice_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"but this one has policy, split_steps$"):
        parse_tuning({name: GOOD[name] for name in ("policy", "split_steps")}, SPEC, H200)


def test_the_kernel_does_not_depend_on_the_context() -> None:
    """What is tuned with one KV cache is found with another."""
    short = replace(SPEC, max_positions=SPEC.max_positions // 2)
    assert render(kernel_variants(short), short, H200) == render(kernel_variants(SPEC), SPEC, H200)


GPU: Any = SimpleNamespace(name="NVIDIA H200", arch=H200)


def store(settings: Settings, values: dict[str, Any]) -> None:
    cache = KernelCache.from_settings(settings)
    tunings.store(cache, TuningRecord(tuning_key(GPU, KERNEL), "a model", values))


def test_a_stored_tuning_is_used_unless_it_is_switched_off(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path / "cache")
    default = default_tuning(SPEC, H200, 8192)
    assert find_tuning(SPEC, GPU, KERNEL, 8192, settings) == (default, "cost model")
    store(settings, GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_tuning(SPEC, GPU, KERNEL, 8192, settings) == (parse_tuning(GOOD, SPEC, H200), "jitmk tune")
        assert find_tuning(SPEC, GPU, "cd" * 32, 8192, settings) == (default, "cost model")
        off = find_tuning(SPEC, GPU, KERNEL, 8192, replace(settings, tuning=False))
    assert off == (default, "cost model, for JITMK_TUNING=off")


def test_a_stored_tuning_that_cannot_be_is_warned_about(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path / "cache")
    store(settings, {**GOOD, "window": 99})
    with pytest.warns(CacheWarning, match=r"is not used, the defaults are: window = 99 .* Run jitmk tune again"):
        tuning, origin = find_tuning(SPEC, GPU, KERNEL, 8192, settings)
    assert tuning == default_tuning(SPEC, H200, 8192) and "unusable" in origin
