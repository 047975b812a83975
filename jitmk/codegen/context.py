"""The render context: every number that the templates substitute, worked out once and frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jitmk.arch import GpuArch
from jitmk.codegen.constants import Constant, constants_of
from jitmk.codegen.sharing import Role, role_config, shared_code
from jitmk.errors import CodegenError
from jitmk.model.spec import ModelSpec
from jitmk.program.chunks import chunk_bytes
from jitmk.program.configs import (
    FEW_SPLITS,
    MAX_GROUP,
    AttentionConfig,
    AttentionReduceConfig,
    Config,
    MatvecConfig,
    RopeConfig,
)
from jitmk.program.isa import Opcode
from jitmk.program.kv_layout import KvLayout
from jitmk.program.packing import BLOCK_COLUMNS, CHAINS, CHUNK_LIMIT, CONSUMER_WARPS, ceil_div
from jitmk.program.program import Variant, word_spread
from jitmk.schedule.cost import most_splits

FIXED_SHARED_BYTES = 10240
"""Shared memory that is neither ring nor slices, at most; the device code works out the exact size."""

OWN_UNITS_SHARED_BYTES = 6144
"""More of it, where consumer warps have units of their own (`MatvecConfig.own_units`): what they share of the input."""

OWN_UNITS_RING_CHUNKS = 12
"""Chunks of a ring in which warps can pass over the chunks of others (vm/own_units.cuh)."""

MIN_RING_CHUNKS = 2

SLICE_ALIGNMENT = 128


@dataclass(frozen=True)
class OpContext:
    """One variant: its place in the kernel, its opcode's template, and its config as constants of the device code.

    `constants` are those of the whole config, `role_constants` those that a role's code may depend on, by its name.
    """

    index: int
    name: str
    opcode: Opcode
    constants: tuple[Constant, ...]
    role_constants: Mapping[str, tuple[Constant, ...]]

    @property
    def template(self) -> str:
        return f"ops/{self.opcode.value}.cuh.j2"


@dataclass(frozen=True)
class BuildOptions:
    """Kernels for looking closely.

    Attributes:
        trace: the kernel notes when it passes the points of `abi.Mark`.
        race_check: every lane arrives at barriers for itself, so that compute-sanitizer's racecheck, which does not
            follow one lane speaking for its warp, can see the order.
    """

    trace: bool = False
    race_check: bool = False


PLAIN = BuildOptions()


MAX_VARIANTS = 32
"""Of a kernel: a 32-bit number has a bit for each. No model of the tests needs more than 27, fused and unfused."""


@dataclass(frozen=True)
class RenderContext:
    """What is specific to one kernel."""

    arch: str
    shared_bytes: int
    slice_bytes: int
    chunk_bytes: int
    head_dim: int
    max_group: int
    own_units: bool
    word_spread: int
    build: BuildOptions
    ops: tuple[OpContext, ...]
    codes: Mapping[str, tuple[tuple[int, ...], ...]]


def render_context(
    variants: Sequence[Variant], spec: ModelSpec, arch: GpuArch, build: BuildOptions = PLAIN
) -> RenderContext:
    """The context of a kernel that holds these variants, in this order.

    Raises:
        CodegenError: the model does not fit the shared memory of the GPU, or needs too many variants.
    """
    if len(variants) > MAX_VARIANTS:
        raise CodegenError(
            f"a kernel holds {MAX_VARIANTS} variants at most, not {len(variants)}: the model's layers are of too many "
            "kinds; use another backend"
        )
    variants = _fitting(variants, arch)
    slice_bytes, slot_bytes = _widest_slice_bytes(variants), _slot_bytes(variants)
    if _ring_chunks(variants, arch) < MIN_RING_CHUNKS:
        raise CodegenError(
            f"the model needs {CONSUMER_WARPS * slice_bytes} bytes of shared memory for its widest vector "
            f"(hidden {spec.hidden_size}, intermediate {spec.intermediate_size}) and {MIN_RING_CHUNKS * slot_bytes} "
            f"for the weight ring, but a block of {arch.name} has {arch.shared_bytes_per_block}; "
            "use a GPU with more shared memory (sm_90a, sm_100a, sm_103a), or another backend"
        )
    if KvLayout(spec.head_dim).tile_bytes > slot_bytes:
        raise CodegenError(f"head_dim = {spec.head_dim} is too wide; 256 is the most")
    for config in (variant.config for variant in variants):
        if isinstance(config, AttentionConfig | RopeConfig) and config.rotary_dim % 4:
            raise CodegenError(
                f"rotary_dim = {config.rotary_dim}: the device code rotates multiples of 4; use another backend"
            )
    return RenderContext(
        arch.name,
        arch.shared_bytes_per_block,
        slice_bytes,
        slot_bytes,
        spec.head_dim,
        MAX_GROUP,
        _own_units(variants),
        word_spread(spec.hidden_size),
        build,
        tuple(map(_op, range(len(variants)), variants)),
        {role.value: shared_code(variants, role) for role in Role},
    )


def _op(index: int, variant: Variant) -> OpContext:
    config = variant.config
    by_role = {role.value: constants_of(role_config(config, role)) for role in Role}
    return OpContext(index, variant.name, variant.opcode, constants_of(config), by_role)


def ring_chunks(variants: Sequence[Variant], arch: GpuArch) -> int:
    """Chunks that the ring of a kernel with these variants holds, at least. None is built below `MIN_RING_CHUNKS`."""
    return _ring_chunks(_fitting(variants, arch), arch)


def has_first_look(variants: Sequence[Variant], arch: GpuArch) -> bool:
    """Whether a kernel with these variants follows `KernelParams.first_look`."""
    configs = [variant.config for variant in _fitting(variants, arch)]
    return any(isinstance(config, MatvecConfig) and config.behind_own_units for config in configs)


def max_window(ring: int) -> int:
    """Loads that may be in flight into a ring of so many chunks, as the device code works it out (vm/shared.cuh)."""
    beside_warps = ring - CONSUMER_WARPS
    return beside_warps if 4 <= beside_warps < ring // 2 else ring // 2


def _fitting(variants: Sequence[Variant], arch: GpuArch) -> Sequence[Variant]:
    """The variants as a kernel for this GPU has them.

    Warps have no units of their own where shared memory is too small, and units are alone where there are as many SMs.
    Only such units come so soon after others that it counts when they first look for their input. A GPU that has no SMs
    for many splits need not have the code that merges many at once.
    """
    own = _ring_chunks(variants, arch) >= OWN_UNITS_RING_CHUNKS
    groups = [variant.config.groups for variant in variants if isinstance(variant.config, AttentionConfig)]

    def fit(config: Config) -> Config:
        if isinstance(config, AttentionReduceConfig) and groups:
            return replace(config, only_few=most_splits(min(groups), arch.sm_count) <= FEW_SPLITS)
        if not isinstance(config, MatvecConfig):
            return config
        lone = not config.own_units and config.layout.units <= arch.sm_count
        behind = own and lone and config.behind_own_units
        return replace(config, own_units=own and config.own_units, lone_units=lone, behind_own_units=behind)

    return [replace(variant, config=fit(variant.config)) for variant in variants]


def _own_units(variants: Sequence[Variant]) -> bool:
    return any(isinstance(variant.config, MatvecConfig) and variant.config.own_units for variant in variants)


def _ring_chunks(variants: Sequence[Variant], arch: GpuArch) -> int:
    fixed = FIXED_SHARED_BYTES + OWN_UNITS_SHARED_BYTES * _own_units(variants)
    slices = CONSUMER_WARPS * _widest_slice_bytes(variants)
    return max(0, arch.shared_bytes_per_block - slices - fixed) // _slot_bytes(variants)


def _slot_bytes(variants: Sequence[Variant]) -> int:
    """Of a slot of the ring: the largest chunk that any variant's matrix may have."""
    matrices = [variant.config for variant in variants if isinstance(variant.config, MatvecConfig)]
    return chunk_bytes(max((config.chunk_limit for config in matrices), default=CHUNK_LIMIT))


def _widest_slice_bytes(variants: Sequence[Variant]) -> int:
    return ceil_div(max(map(_slice_bytes, variants)), SLICE_ALIGNMENT) * SLICE_ALIGNMENT


def _slice_bytes(variant: Variant) -> int:
    """Shared memory that the variant wants for one consumer warp."""
    config = variant.config
    if isinstance(config, MatvecConfig):
        # The input in bf16, if it is not in registers; behind a post-norm the fp32 sum (vm/input.cuh, vm/prologue.cuh).
        layout = config.layout
        columns = ceil_div(layout.blocks, CHAINS) * CHAINS * BLOCK_COLUMNS if config.input_in_shared else 0
        return 2 * columns + (0 if config.post is None else 4 * layout.slice_columns)
    if isinstance(config, AttentionConfig):
        return config.group * config.head_dim * 4
    return 0
