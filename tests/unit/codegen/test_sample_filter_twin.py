"""The device's sampling filters, run on the host: every lane of one storer an SM, on several SMs at once.

They must leave what the host leaves, whoever comes first, and count probabilities in the same integers.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from jitmk.arch import GpuArch
from jitmk.codegen import abi
from jitmk.engine.sampling import leave
from jitmk.reference.ops.sample_filter import Filters, depths, drop_scale, drops, largest_drop, weights
from tests.support.filter_cases import FILTERS, LOGITS, TEMPERATURES
from tests.support.host_shim import run_on_host
from tests.support.rendering import inline_for_host, isa_part
from tests.support.tiny import tiny_spec

_GEOMETRY = """
#include "jitmk/vm/sample_filter.cuh"
using namespace jitmk;
using namespace jitmk::vm;
struct Shared {
  WarpRecord record[WORKING_WARPS];
  u32 leave;
  ptx::Barrier finished;
};
struct Geometry {
  using Shared = ::Shared;
  static constexpr bool race_check = false, trace = false, own_units = false;
};
"""

# SM i has units i, i + sms, ..., as far as they go; its storer is warp i. Sums begin with whatever was there, and are
# not cleared between cases; words carry older epochs.
_RUN = """
  std::FILE* file = std::fopen("%s", "rb");
  static unsigned long long sums[%d];
  for (auto& sum : sums) sum = 0x9e3779b97f4a7c15ull * (&sum - sums + 1);
  for (auto& sum : sums) if ((&sum - sums) %% 3 == 0) sum = ~0ull;
  static unsigned long long words[64];
  struct Case { int rows, sms, top_k, seed; double top_p; float drop_scale, largest_drop; } one;
  for (unsigned epoch = 1; std::fread(&one, sizeof one, 1, file) == 1; epoch++) {
    const int units = (one.rows + UNIT_ROWS - 1) / UNIT_ROWS;
    std::vector<float> logits(one.rows), keys(one.rows), values(2 * units * UNIT_ROWS);
    std::fread(logits.data(), 4, one.rows, file);
    std::fread(keys.data(), 4, one.rows, file);
    Params p{};
    p.filter_values = values.data(), p.filter_words = words, p.filter_sums = sums;
    p.filters = 1, p.shares = one.sms, p.top_k = one.top_k, p.top_p = one.top_p;
    p.drop_scale = one.drop_scale, p.largest_drop = one.largest_drop, p.epoch = epoch;
    std::vector<Shared> shared(one.sms);
    const std::vector<unsigned long long> dirt(FILTER_SHARED_BYTES / 8, ~0ull);
    std::vector<std::vector<unsigned long long>> bins(one.sms, dirt);
    std::vector<Candidate> best(one.sms * WARP_LANES);
    host::run(one.sms, one.seed, [&](int sm, int lane) {
      const Context<Geometry> context{p, shared[sm], STORER_WARP, lane};
      const int count = (units - sm + one.sms - 1) / one.sms;
      const LogitShare share{values.data(), values.data() + units * UNIT_ROWS, sm, one.sms, count * UNIT_ROWS};
      float largest = ptx::minus_infinity();
      for (int i = lane; i < share.rows; i += WARP_LANES) {
        const int row = share.row(i);
        const bool inside = row < one.rows;
        const float logit = inside ? logits[row] : ptx::minus_infinity();
        largest = fmaxf(largest, logit);
        share.put(row, logit, inside ? keys[row] : 1e9f);
      }
      __syncwarp();
      best[sm * WARP_LANES + lane] = filter_share(context, share, bins[sm].data(), sm, largest);
    });
    Candidate chosen;
    for (const Candidate& one_of : best) if (one_of.token != isa::NO_TOKEN) chosen.offer(one_of.key, one_of.token);
    bool alike = true;
    for (int i = 0; i < one.sms * WARP_LANES; i++) alike &= best[i].token == best[i / WARP_LANES * WARP_LANES].token;
    std::printf("%%d %%d\\n", chosen.token, alike);
  }
"""


@dataclass(frozen=True)
class Case:
    """One draw, spread over some SMs."""

    logits: torch.Tensor
    keys: torch.Tensor
    sms: int
    seed: int
    temperature: float
    filters: Filters
    name: str

    def encode(self) -> bytes:
        filters = self.filters
        head = (len(self.logits), self.sms, filters.top_k, self.seed, filters.top_p)
        floats = (drop_scale(self.temperature), largest_drop(filters.min_p))
        return struct.pack("iiiidff", *head, *floats) + self.logits.numpy().tobytes() + self.keys.numpy().tobytes()

    @property
    def token(self) -> int:
        """What must be chosen: of what is left, the largest key, of equal ones the lowest token."""
        logits = torch.where(self.logits.isnan(), -math.inf, self.logits)
        left = leave(logits, self.temperature, self.filters) & (logits > -math.inf)
        if not bool(left.any()):
            return abi.NO_TOKEN
        keys = torch.where(left, self.keys, -math.inf)
        return int((keys == keys.max()).nonzero()[0])


def _device(folder: Path) -> str:
    isa = isa_part(tiny_spec(), GpuArch.parse("sm_90a"))
    return '#include "warps_on_host.h"\n' + inline_for_host(isa + _GEOMETRY, folder)


def _cases() -> list[Case]:
    random = torch.Generator().manual_seed(5)
    cases = []
    for name, make in LOGITS.items():
        for i, filters in enumerate(FILTERS):
            sms, rows = ((1, 40), (3, 301), (5, 1003))[i % 3]
            logits = make(rows, random)
            keys = torch.randint(0, 50 if i % 2 else 1 << 20, (rows,), generator=random).float()
            temperature = TEMPERATURES[(i + len(name)) % len(TEMPERATURES)]
            cases.append(Case(logits, keys, sms, i, temperature, filters, name))
    return cases


def test_the_device_chooses_among_what_the_host_leaves(tmp_path: Path) -> None:
    cases = _cases()
    file = tmp_path / "cases"
    file.write_bytes(b"".join(case.encode() for case in cases))
    rows = run_on_host(_device(tmp_path), _RUN % (file, abi.FILTER_SUMS), tmp_path)
    assert len(rows) == len(cases)
    for case, (token, alike) in zip(cases, rows, strict=True):
        assert (int(token), alike) == (case.token, "1"), (case.name, case.temperature, case.filters)


def test_integers_are_those_of_python(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    edges = torch.tensor([0.0, 1e-40, 0.99999994, 31.999998, 32.0, 32.000004, 1e30, math.inf])
    drop = torch.cat((torch.rand(1000, generator=random) * 40, torch.rand(50, generator=random) * 1e-6, edges))
    values = torch.tensor([0.0, 1e-40, -1e-40, 3e38, -3e38, math.inf, -math.inf])
    logits = torch.cat((torch.randn(400, generator=random) * 10, values))
    below = logits.clamp(max=3e38)
    main = f"""
  const unsigned drop[] = {{{_words(drop)}}}, logit[] = {{{_words(logits)}}}, below[] = {{{_words(below)}}};
  const float scale = __uint_as_float({_words(torch.tensor([drop_scale(0.7)]))});
  for (unsigned bits : drop) std::printf("%u\\n", weight_of(__uint_as_float(bits)));
  for (unsigned bits : logit) std::printf("%u\\n", depth_of(__uint_as_float(bits)));
  for (unsigned bits : below) std::printf("%u\\n", __float_as_uint(drop_of(__uint_as_float(bits), 3e38f, scale)));"""
    found = [int(row[0]) for row in run_on_host(_device(tmp_path), main, tmp_path)]
    expected = [*weights(drop).tolist(), *depths(logits).tolist(), *map(int, _words(drops(below, 0.7)).split(","))]
    assert found == expected


def _words(values: torch.Tensor) -> str:
    """The bits of fp32 values, as C++ writes lists."""
    return ",".join(str(value & 0xFFFFFFFF) for value in values.float().view(torch.int32).tolist())
