"""The numbers behind a kernel: what fits, and what does not."""

from __future__ import annotations

import pytest

from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.codegen.context import MAX_VARIANTS, MIN_RING_CHUNKS, render_context
from jitmk.engine.step_programs import kernel_variants
from jitmk.errors import CodegenError
from jitmk.model.spec import ModelSpec
from jitmk.program.configs import FEW_SPLITS
from jitmk.program.isa import Opcode
from jitmk.program.packing import CONSUMER_WARPS
from jitmk.schedule.cost import split_ladder
from tests.support.shapes import LLAMA_1B, LLAMA_8B, LLAMA_405B
from tests.support.tiny import tiny_spec


def test_a_model_too_wide_for_the_shared_memory_is_refused_with_the_numbers() -> None:
    arch = GpuArch.parse("sm_120a")
    with pytest.raises(CodegenError) as caught:
        render(kernel_variants(LLAMA_405B), LLAMA_405B, arch)
    message = str(caught.value)
    for needed in (LLAMA_405B.intermediate_size, arch.shared_bytes_per_block, "sm_120a", "sm_90a", "another backend"):
        assert str(needed) in message


@pytest.mark.parametrize("arch_name", GpuArch.supported())
def test_the_1b_fits_everywhere(arch_name: str) -> None:
    arch = GpuArch.parse(arch_name)
    context = render_context(kernel_variants(LLAMA_1B), LLAMA_1B, arch)
    left = arch.shared_bytes_per_block - CONSUMER_WARPS * context.slice_bytes
    assert context.arch == arch_name and left > MIN_RING_CHUNKS * context.chunk_bytes


def test_the_405b_fits_where_shared_memory_is_large() -> None:
    assert render_context(kernel_variants(LLAMA_405B), LLAMA_405B, GpuArch.parse("sm_90a")).slice_bytes > 0


def test_a_post_norm_needs_room_for_the_sum_too() -> None:
    arch = GpuArch.parse("sm_90a")
    plain, sandwich = (tiny_spec(hidden_size=2048, post_norm=post_norm) for post_norm in (False, True))
    slices = [render_context(kernel_variants(spec), spec, arch).slice_bytes for spec in (plain, sandwich)]
    attention = 2 * plain.head_dim * 4  # sums of two heads; the input of 2048 columns is in registers
    assert slices == [attention, 2048 // CONSUMER_WARPS * 4]


def test_a_long_input_is_in_shared_memory() -> None:
    arch = GpuArch.parse("sm_90a")
    for columns, in_shared in ((2048, 0), (2304, 3 * 128 * 2), (8192, 1024 * 2)):
        spec = tiny_spec(intermediate_size=columns)
        assert render_context(kernel_variants(spec), spec, arch).slice_bytes == max(2 * spec.head_dim * 4, in_shared)


def constants_of_kernel(spec: ModelSpec, arch: str) -> dict[str, dict[str, str]]:
    """By the name of a matvec, what its consumers' code is rendered from."""
    context = render_context(kernel_variants(spec), spec, GpuArch.parse(arch))
    ops = [op for op in context.ops if op.opcode is Opcode.MATVEC]
    return {op.name: {constant.name: constant.value for constant in op.role_constants["consume"]} for op in ops}


def test_warps_have_units_of_their_own_where_shared_memory_is_large() -> None:
    """Where it is small, a warp could not pass over the chunks of others (vm/own_units.cuh)."""
    for arch, own in (("sm_90a", "true"), ("sm_100a", "true"), ("sm_120a", "false")):
        consumers = constants_of_kernel(tiny_spec(), arch)
        assert consumers["qkv"]["OWN_UNITS"] == consumers["gate_up"]["OWN_UNITS"] == own
        assert consumers["down"]["BEHIND_OWN_UNITS"] == own
        assert consumers["down"]["OWN_UNITS"] == consumers["lm_head"]["OWN_UNITS"] == "false"
    spec = tiny_spec(hidden_size=2048)
    assert all(config["OWN_UNITS"] == "false" for config in constants_of_kernel(spec, "sm_90a").values())


def test_units_are_alone_where_there_are_as_many_sms() -> None:
    for units, lone in ((132, "true"), (133, "false")):
        consumers = constants_of_kernel(tiny_spec(hidden_size=8 * units), "sm_90a")
        assert consumers["o_proj"]["LONE_UNITS"] == consumers["down"]["LONE_UNITS"] == lone
        assert consumers["qkv"]["LONE_UNITS"] == ("true" if consumers["qkv"]["OWN_UNITS"] == "false" else "false")


@pytest.mark.parametrize(
    ("kv_heads", "sms", "splits"),
    [
        (1, 132, 132),
        (5, 132, 26),
        (7, 132, 18),
        (8, 132, 16),
        (8, 148, 18),
        (12, 132, 11),
        (132, 132, 1),
        (144, 132, 1),
    ],
)
def test_the_code_for_many_splits_is_there_where_the_gpu_has_sms_for_them(kv_heads: int, sms: int, splits: int) -> None:
    spec = tiny_spec(num_heads=kv_heads, num_kv_heads=kv_heads)
    assert split_ladder(spec, sms)[-1] == splits
    context = render_context(kernel_variants(spec), spec, GpuArch.parse("sm_90a", sm_count=sms))
    (reduce,) = (op for op in context.ops if op.opcode is Opcode.ATTENTION_REDUCE)
    constants = {constant.name: constant.value for constant in reduce.constants}
    assert constants["ONLY_FEW"] == ("true" if splits <= FEW_SPLITS else "false")


def test_gpus_of_nearly_as_many_sms_share_a_kernel() -> None:
    for spec in (LLAMA_1B, LLAMA_8B):
        sources = {render(kernel_variants(spec), spec, GpuArch.parse("sm_90a", sm_count=sms)) for sms in (114, 132)}
        assert len(sources) == 1


def test_a_rotation_that_the_device_code_cannot_do_is_refused() -> None:
    spec = tiny_spec(rotary_dim=10)
    with pytest.raises(CodegenError, match="rotary_dim = 10"):
        render(kernel_variants(spec), spec, GpuArch.parse("sm_90a"))


def test_a_kernel_of_too_many_variants_is_refused() -> None:
    spec = tiny_spec()
    variants, arch = kernel_variants(spec) * 10, GpuArch.parse("sm_90a")
    assert len(variants) > MAX_VARIANTS == 32
    render(variants[:MAX_VARIANTS], spec, arch)
    with pytest.raises(
        CodegenError, match=f"{MAX_VARIANTS} variants at most, not {MAX_VARIANTS + 1}: .* use another backend"
    ):
        render(variants[: MAX_VARIANTS + 1], spec, arch)


def test_an_opcode_that_no_program_uses_is_not_in_the_kernel() -> None:
    spec = tiny_spec()
    variants = [v for v in kernel_variants(spec) if v.opcode is not Opcode.ATTENTION_REDUCE]
    source = render(variants, spec, GpuArch.parse("sm_90a"))
    assert "using Shape = vm::AttentionReduce<" not in source
    assert "using Shape = vm::AttentionReduce<" in render(kernel_variants(spec), spec, GpuArch.parse("sm_90a"))


def test_variants_keep_their_index() -> None:
    """An instruction names its code by index: the kernel must number them as the programs do."""
    variants = kernel_variants(LLAMA_1B)
    context = render_context(variants, LLAMA_1B, GpuArch.parse("sm_90a"))
    assert [(op.index, op.name, op.opcode) for op in context.ops] == [
        (i, v.name, v.opcode) for i, v in enumerate(variants)
    ]
