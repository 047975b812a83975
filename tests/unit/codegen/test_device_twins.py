"""Where Python and the device compute the same thing twice: layouts of memory, and the noise that sampling draws with.

The device's text runs on the host here, so that a change of either side is noticed without a GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jitmk.arch import GpuArch
from jitmk.engine.philox import gumbel, philox4x32
from jitmk.program.kv_layout import TILE_POSITIONS, KvLayout
from jitmk.program.packing import MatrixLayout, pack
from tests.support.host_shim import run_on_host
from tests.support.rendering import inline, isa_part
from tests.support.tiny import tiny_spec

HEAD_DIMS = (64, 80, 96, 128, 256)
# Columns within one block, a slice that is not full, several chunks of different sizes, more chunks than warps.
TABLES = ((24, 16), (17, 320), (16, 2048), (9, 2304), (16, 4352), (8, 16384))


def _device(*headers: str) -> str:
    isa = isa_part(tiny_spec(), GpuArch.parse("sm_90a"))
    return inline(isa + "".join(f'#include "jitmk/{header}"\n' for header in headers))


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
        shape = f"Embed<{columns}, true, {layout.blocks}, {layout.chunks}, 2>"
        calls.append(
            f"  for (int r = 0; r < {rows}; r++) for (int c = 0; c < {columns}; c += 2)"
            f' std::printf("{rows} {columns} %d %d %lld\\n", r, c, packed_offset<{shape}>(r, c));'
        )
    main = "using namespace jitmk::vm;\n" + "\n".join(calls)
    found = run_on_host(_device("vm/embed.cuh"), main, tmp_path)
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
