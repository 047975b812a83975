"""The host finds what is wrong with device code: waits that never end, lanes that part, what a missing wait spoils."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jitmk.engine.step_programs import kernel_variants
from jitmk.program.isa import END_VARIANT, HEADER
from jitmk.program.lowering import lower
from tests.support.features import feature_spec
from tests.support.megakernel_on_host import compile_for_host
from tests.support.model_on_host import HostModel

IDS = [5, 80, 13]
SPEC = feature_spec("sandwich")


def _model(folder: Path, mistake: tuple[str, str, str] | None = None) -> HostModel:
    folder.mkdir()
    variants = kernel_variants(SPEC)
    return HostModel(SPEC, compile_for_host(variants, SPEC, folder, mistake), variants)


def test_a_missing_instruction_leaves_others_waiting(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = _model(tmp_path / "kernel")
    program = model.prepare(lower(SPEC))
    phase = next(phase.index for phase in program.program.phases if phase.name == "layers.0.qkv")
    queues = program.queues
    sm, place = (
        (queues[:, :, HEADER.index("phase")] == phase).logical_and(queues[:, :, 0] != END_VARIANT).nonzero()[0].tolist()
    )
    queues[sm, place:-1] = queues[sm, place + 1 :].clone()
    with pytest.raises(AssertionError, match="went wrong"):
        model.forced_logits(program, IDS, 0)
    report = capfd.readouterr().err
    assert "nobody will ever be done" in report and "vm/context.cuh" in report


MISTAKES = {
    "a wait without a vote": (
        "vm/context.cuh",
        "while (!__all_sync(ALL_LANES, have_come()));",
        "while (!have_come());",
    ),
    "norms of what the other warps have not said yet": (
        "vm/moments.cuh",
        "    consumer.meet_after_poll();\n",
        "    __syncwarp();\n",
    ),
    "dots of a chunk that has not landed": (
        "vm/roles.cuh",
        "wait_barrier(context, &context.shared.chunk_full[chunk_.slot], chunk_.parity, Wait::RING_FULL, chunk_.slot);",
        "",
    ),
    "one meeting too few": (
        "vm/attention.cuh",
        "    consumer.meet(told);  // slices and shared state may be overwritten from here on\n",
        "",
    ),
}


@pytest.fixture(scope="module")
def sound_logits(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    sound = _model(tmp_path_factory.mktemp("sound") / "kernel")
    return sound.forced_logits(sound.prepare(lower(SPEC, 3)), IDS, 40)


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_show(what: str, tmp_path: Path, sound_logits: torch.Tensor) -> None:
    """With some turns: either the launch goes wrong, or its results do."""
    wrong = _model(tmp_path / "wrong", MISTAKES[what])
    program = wrong.prepare(lower(SPEC, 3))
    for _ in range(10):
        try:
            found = not torch.equal(wrong.forced_logits(program, IDS, 40), sound_logits)
        except AssertionError:
            return
        if found:
            return
    pytest.fail("nobody noticed")
