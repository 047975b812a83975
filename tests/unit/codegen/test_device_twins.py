"""Where Python and the device compute the same thing twice: layouts of memory, noise, and functions of one number.

The device's text runs on the host here, so that a change of either side is noticed without a GPU.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from jitmk.arch import GpuArch
from jitmk.codegen import max_window
from jitmk.codegen.constants import float_literal
from jitmk.engine.philox import gumbel, philox4x32
from jitmk.model.spec import Activation
from jitmk.program.kv_layout import TILE_POSITIONS, KvLayout
from jitmk.program.packing import CONSUMER_WARPS, MatrixLayout, pack
from jitmk.reference.ops.activate import apply_activation
from jitmk.reference.ops.attention import old_positions
from tests.support.host_shim import run_on_host
from tests.support.rendering import inline, inline_for_host, isa_part
from tests.support.tiny import tiny_spec

HEAD_DIMS = (64, 80, 96, 128, 256)
# Columns within one block, a slice that is not full, several chunks of different sizes, more chunks than warps.
TABLES = ((24, 16), (17, 320), (16, 2048), (9, 2304), (16, 4352), (8, 16384))


def _with_isa(*headers: str) -> str:
    isa = isa_part(tiny_spec(), GpuArch.parse("sm_90a"))
    return isa + "".join(f'#include "jitmk/{header}"\n' for header in headers)


def _device(*headers: str) -> str:
    return inline(_with_isa(*headers))


def test_kv_tiles_lie_alike(tmp_path: Path) -> None:
    calls = "\n".join(
        f"  for (int p = 0; p < {TILE_POSITIONS}; p++) for (int d = 0; d < {dim}; d++)"
        f' std::printf("{dim} %d %d %d %d\\n", p, d, key_offset<{dim}>(p, d), value_offset<{dim}>(p, d));'
        for dim in HEAD_DIMS
    )
    rows = run_on_host(_device("tile/attention.cuh"), "using namespace jitmk::tile;\n" + calls, tmp_path)
    assert len(rows) == TILE_POSITIONS * sum(HEAD_DIMS)
    keys = {dim: KvLayout(dim).key_index() for dim in HEAD_DIMS}
    values = {dim: KvLayout(dim).value_index() for dim in HEAD_DIMS}
    for row in rows:
        dim, position, d, key, value = map(int, row)
        assert (key, value) == (int(keys[dim][position, d]), int(values[dim][position, d])), (dim, position, d)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_tile_has_a_place_for_every_element_and_no_other(head_dim: int) -> None:
    layout = KvLayout(head_dim)
    places = torch.cat((layout.key_index().flatten(), layout.value_index().flatten()))
    assert torch.equal(places.sort().values, torch.arange(layout.tile_elements))


def test_embedding_rows_lie_in_the_packed_head(tmp_path: Path) -> None:
    """`packed_offset` finds in the packed matrix what `pack` put there."""
    calls = []
    for rows, columns in TABLES:
        layout = MatrixLayout(rows, columns)
        shape = f"Table<{layout.blocks}, {layout.chunks}, {layout.unit_blocks}>"
        calls.append(
            f"  for (int r = 0; r < {rows}; r++) for (int c = 0; c < {columns}; c += 2)"
            f' std::printf("{rows} {columns} %d %d %lld\\n", r, c, packed_offset<{shape}>(r, c));'
        )
    members = "static constexpr int BLOCKS = B, CHUNKS = C, UNIT_BLOCKS = U;"
    table = f"template <int B, int C, int U> struct Table {{ {members} }};\n"
    main = "using namespace jitmk::vm;\n" + "\n".join(calls)
    found = run_on_host(_device("vm/embed.cuh") + table, main, tmp_path)
    assert len(found) == sum(rows * columns // 2 for rows, columns in TABLES)
    for rows, columns in TABLES:
        places = torch.tensor(
            [[int(field) for field in row[2:]] for row in found if row[:2] == [str(rows), str(columns)]]
        )
        # Two bytes an element; bf16 counts exactly up to 256, so number the elements in two digits.
        elements = torch.arange(rows * columns).view(rows, columns)
        low, high = pack((elements % 256).bfloat16()).flatten(), pack((elements // 256 % 256).bfloat16()).flatten()
        at = places[:, 2] // 2
        expected = elements[places[:, 0], places[:, 1]] % 65536
        assert torch.equal(low[at].long() + 256 * high[at].long(), expected), (rows, columns)
        assert int(places[:, 2].max()) < MatrixLayout(rows, columns).nbytes


def test_philox_counts_alike(tmp_path: Path) -> None:
    counters = [(0, 0, 0, 0), (1, 2, 3, 4), (0xFFFFFFFF,) * 4, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    keys = [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0xA4093822, 0x299F31D0)]
    calls = "\n".join(
        "  { const uint4 r = philox(make_uint4("
        + ", ".join(f"{c}u" for c in counter)
        + f'), {key[0]}u, {key[1]}u); std::printf("%u %u %u %u\\n", r.x, r.y, r.z, r.w); }}'
        for counter in counters
        for key in keys
    )
    rows = run_on_host(_device("vm/candidate.cuh"), "using namespace jitmk::vm;\n" + calls, tmp_path)
    expected = [philox4x32(torch.tensor(counter), key).tolist() for counter in counters for key in keys]
    assert [[int(field) for field in row] for row in rows] == expected


def test_noise_is_the_same_and_greedy_has_none(tmp_path: Path) -> None:
    seed, position, vocabulary = 0x0123456789ABCDEF, 4097, 1000
    main = f"""
  jitmk::isa::Params p{{}};
  p.seed_low = {seed & 0xFFFFFFFF}u, p.seed_high = {seed >> 32}u;
  for (int greedy = 0; greedy < 2; greedy++) {{
    p.greedy = greedy;
    for (int t = 0; t < {vocabulary}; t++)
      std::printf("%.9g\\n", jitmk::vm::gumbel_of_row(p, {position}, t / 8, t % 8));
  }}"""
    values = torch.tensor([float(row[0]) for row in run_on_host(_device("vm/candidate.cuh"), main, tmp_path)])
    noise, none = values.view(2, vocabulary)
    # Two logarithms of two libraries, each within an ulp; near 0 the outer one loses the inner one's relative accuracy.
    torch.testing.assert_close(noise, gumbel(seed, position, vocabulary), rtol=1e-6, atol=1e-6)
    assert bool((none == 0).all())


def _bf16_everywhere() -> torch.Tensor:
    """Every finite bf16 number up to 1e30 in size, fp32: what an activation may be asked for."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).float()
    return values[torch.isfinite(values) & (values.abs() < 1e30)]


@pytest.mark.parametrize("activation", Activation)
def test_activations_are_those_of_torch(activation: Activation, tmp_path: Path) -> None:
    main = f"""
  for (int i = -(1 << 15); i < 1 << 15; i++) {{
    const float x = __uint_as_float(static_cast<unsigned>(i) << 16);
    if (std::isfinite(x) && std::fabs(x) < 1e30f)
      std::printf("%.9g\\n", jitmk::vm::activate<jitmk::vm::Activation::{activation.name}>(x));
  }}
  std::printf("%.9g\\n", jitmk::vm::activate<jitmk::vm::Activation::{activation.name}>(__uint_as_float(0x7fc00000)));"""
    source = inline_for_host(_with_isa("vm/activation.cuh"), tmp_path, of_warps=False)
    *found, nan = (float(row[0]) for row in run_on_host(source, main, tmp_path))
    expected = apply_activation(activation, _bf16_everywhere())
    # Where 1 + erf or 1 + tanh is near 0, torch's fp32 has few bits left: both are off by about 1e-7.
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-6)
    assert math.isnan(nan)


def test_windows_are_as_wide(tmp_path: Path) -> None:
    shape = """template <int BYTES> struct Geometry {
  static constexpr int shared_bytes = BYTES, slice_bytes = 1024, chunk_bytes = 16384, head_dim = 64, max_group = 8;
  static constexpr bool race_check = false, own_units = false;
};
"""
    calls = "\n".join(
        f"  {{ using S = jitmk::vm::SharedLayout<Geometry<{size}>>;"
        ' std::printf("%d %d\\n", S::RING_CHUNKS, S::MAX_WINDOW); }'
        for size in range(64 * 1024, 416 * 1024, 16 * 1024)
    )
    rows = [tuple(map(int, row)) for row in run_on_host(_device("vm/shared.cuh") + shape, calls, tmp_path)]
    assert {ring for ring, _ in rows} >= set(range(4, 20))
    for ring, window in rows:
        assert max_window(ring) == window <= ring // 2, ring
        assert ring < 12 or window + CONSUMER_WARPS <= ring, "room for a chunk of each consumer warp"


@pytest.mark.parametrize("cap", [2.0, 50.0])
def test_soft_caps_are_those_of_torch(cap: float, tmp_path: Path) -> None:
    main = f"""
  for (int i = -4000; i <= 4000; i++) std::printf("%.9g\\n", jitmk::vm::soft_cap(i * 0.25f, {cap}f));
  const float far[] = {{1e30f, -1e30f, INFINITY, -INFINITY}};
  for (float x : far) std::printf("%.9g\\n", jitmk::vm::soft_cap(x, {cap}f));"""
    source = inline_for_host(_with_isa("vm/activation.cuh"), tmp_path, of_warps=False)
    found = torch.tensor([float(row[0]) for row in run_on_host(source, main, tmp_path)])
    far = torch.tensor([1.0, -1.0, 1.0, -1.0])
    expected = torch.cat((torch.tanh(torch.arange(-4000, 4001) * 0.25 / cap), far)) * cap
    torch.testing.assert_close(found, expected, rtol=0, atol=cap * 5e-7)


def test_splits_of_a_window_cover_the_same_positions(tmp_path: Path) -> None:
    """Tiles that a unit loads, and the positions of them that count, for every position, window and split."""
    windows, splits, positions = (0, 1, 2, 15, 16, 17, 40), (1, 3), range(66)
    shape = """struct Shape {
  static constexpr bool WINDOW = true, APPEND = true;
  static constexpr int RATIO = 1, GROUP = 1, GROUPS_PER_KV_HEAD = 1;
};
"""
    calls = "\n".join(
        f"  for (int p = 0; p < {len(positions)}; p++) for (int s = 0; s < {of}; s++) {{"
        f" const jitmk::vm::TileRange<Shape> t(jitmk::vm::AttentionUnit<Shape>(s, {of}), {of}, p, {window});"
        f' std::printf("{window} {of} %d %d %d %d %d\\n", p, s, t.oldest, t.first, t.last); }}'
        for window in windows
        for of in splits
    )
    rows = run_on_host(_device("vm/attention_tiles.cuh") + shape, calls, tmp_path)
    assert len(rows) == len(windows) * sum(splits) * len(positions)
    for row in rows:
        window, of, position, split, oldest, first, last = map(int, row)
        loaded = range(max(first * TILE_POSITIONS, oldest), min(last * TILE_POSITIONS, position))
        expected = old_positions(position, split, of, window)
        assert list(loaded) == list(expected), row
        assert first <= last and (last - first) * TILE_POSITIONS < len(expected) + 2 * TILE_POSITIONS, row


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 32), (96, 96), (128, 96), (256, 256), (64, 0)])
def test_quads_of_a_head_hold_what_rotates_together(head_dim: int, rotary_dim: int, tmp_path: Path) -> None:
    main = f"""
  using Quads = jitmk::vm::HeadQuads<{head_dim}, {rotary_dim}>;
  for (int q = 0; q < Quads::QUADS; q++) std::printf("%d %d\\n", Quads::low(q), Quads::high(q));"""
    words = [tuple(map(int, row)) for row in run_on_host(_device("vm/head.cuh"), main, tmp_path)]
    assert sorted(word for pair in words for word in pair) == list(range(head_dim // 2))
    for quad, (low, high) in enumerate(words[: rotary_dim // 4]):
        assert (low, high - low) == (quad, rotary_dim // 4)


def test_moments_of_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    """A mean that is large beside the deviation costs nothing; a warp without values counts for nothing."""
    x = torch.randn(300, generator=torch.Generator().manual_seed(1)) + 1000
    parts = [*torch.split(x, 50), torch.empty(0), torch.empty(0)]
    moments = [(len(p), p.mean().item() if len(p) else 0.0, ((p - p.mean()) ** 2).sum().item()) for p in parts]
    fields = [", ".join(map(float_literal, values)) for values in zip(*moments, strict=True)]
    text = ", ".join("{" + values + "}" for values in fields)
    main = f"""
  using namespace jitmk::vm;
  const WarpMoments parts = {{{text}}};
  const Normaliser layer = pool<NormKind::LAYER>(parts, 300, 1e-5f);
  std::printf("%.9g %.9g\\n", layer.mean, layer.scale);"""
    source = inline_for_host(_with_isa("vm/moments.cuh"), tmp_path, of_warps=False)
    ((mean, scale),) = run_on_host(source, main, tmp_path)
    assert float(mean) == pytest.approx(x.double().mean().item(), rel=1e-6)
    assert float(scale) == pytest.approx(torch.rsqrt(x.double().var(unbiased=False) + 1e-5).item(), rel=1e-5)
