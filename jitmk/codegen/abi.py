"""What crosses the border between host and kernel: the launch parameter and the hang report.

Both sides come from here: the host uses the ctypes structure, the device the struct that is rendered from it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from jitmk.program.packing import CONSUMER_WARPS

MAX_STOP_TOKENS = 16
"""Token ids that end a generation on the device."""

HOST_TOKENS = 4096
"""Slots of the ring in host memory through which tokens reach the host; a power of two, so that epochs wrap evenly."""


STOP_BIT = 1 << 31
"""Set in the payload of a token word with which the generation ends."""

NO_TOKEN = 0x7FFFFFFF
"""What stands for a token where no logit was a number above -inf."""

FILTER_BINS = 16
"""Bins of a round of the search for a sampling filter's threshold (csrc_headers/jitmk/vm/sample_filter.cuh)."""

FILTER_ROUNDS = 16
"""Rounds of a step at most: 32 bits in steps of 4, for top-k and again for top-p."""

FILTER_ROUND_WORDS = 128
"""Words of 8 bytes from one round's sums to the next: 32 sums, four at the beginning of each of eight L2 lines, so that
what all SMs add to and poll is spread."""

FILTER_SUMS = (FILTER_ROUNDS + 1) * FILTER_ROUND_WORDS
"""Words of the sums of all rounds, and of the one that is looked at behind the last."""

WORKING_WARPS = CONSUMER_WARPS + 2
"""Consumer warps, the loader and the storer."""

WARPS = CONSUMER_WARPS + 4
"""Behind the working ones the watchdog, and one that is idle: registers are dealt to groups of four warps."""


@dataclass(frozen=True)
class Field:
    """One field of the launch parameter: its name, its type on either side, and what it means."""

    name: str
    host: type[ctypes._SimpleCData[Any]]
    device: str
    comment: str
    count: int = 1

    @property
    def declaration(self) -> str:
        return f"{self.device} {self.name}" + (f"[{self.count}]" if self.count > 1 else "")


_POINTER = ctypes.c_uint64

PARAM_FIELDS = (
    Field("instructions", _POINTER, "const int*", "[sms][queue_length][32]"),
    Field("weights", _POINTER, "const unsigned char*", "the weight arena"),
    Field("constants", _POINTER, "const float*", "norm weights and biases"),
    Field("kv", _POINTER, "unsigned char*", "[layers][kv_heads][tiles][tile bytes]"),
    Field("rope", _POINTER, "const float2*", "cos and sin (program/rope_layout.py)"),
    Field("words", _POINTER, "u64*", "the word arena: every buffer between phases"),
    Field("token_words", _POINTER, "u64*", "[sms] the token of the step before"),
    Field("kv_ready", _POINTER, "u32*", "[layers][kv_heads] epoch of the last append"),
    Field("logits", _POINTER, "float*", "[steps][vocabulary], or null"),
    Field("forced_tokens", _POINTER, "const int*", "[steps] tokens to read instead of the sampled ones, or null"),
    Field("filter_values", _POINTER, "float*", "[2][units * 8] logits and keys, where there are filters"),
    Field("filter_words", _POINTER, "u64*", "[shares] the largest logit of each"),
    Field("filter_sums", _POINTER, "u64*", "[rounds + 1][lines][16] sums over the SMs, four a line"),
    Field("host_tokens", _POINTER, "u64*", "ring in host memory, indexed by epoch"),
    Field("report", _POINTER, "volatile u32*", "hang report in host memory"),
    Field("trace", _POINTER, "u64*", "[sms][queue_length][marks] cycles, in kernels built for tracing"),
    Field("halt", _POINTER, "u32*", "nonzero once the launch has been given up"),
    Field("deadline_ns", ctypes.c_uint64, "u64", "how long a wait may take"),
    Field("kv_layer_stride", ctypes.c_int64, "i64", "bytes"),
    Field("kv_head_stride", ctypes.c_int64, "i64", "bytes"),
    Field("top_p", ctypes.c_double, "double", "1: no restriction"),
    Field("sms", ctypes.c_int32, "int", "CTAs of the launch"),
    Field("queue_length", ctypes.c_int32, "int", "instructions of a queue, the end included"),
    Field("position", ctypes.c_int32, "int", "of the first step's token: tokens in the cache"),
    Field("steps", ctypes.c_int32, "int", "tokens to generate at most"),
    Field("epoch", ctypes.c_uint32, "u32", "of the first step"),
    Field("first_token", ctypes.c_int32, "int", "the first step's token; negative: made by the launch before"),
    Field("window", ctypes.c_int32, "int", "chunk loads in flight, but for the middle of long instructions"),
    Field("window_ahead", ctypes.c_int32, "int", "the same while the ring is more than half full"),
    Field("first_look", ctypes.c_int32, "int", "cycles from a matvec behind own units to its first look for input"),
    Field("greedy", ctypes.c_int32, "int", "whether the noise is left out"),
    Field("inverse_temperature", ctypes.c_float, "float", "1 when greedy"),
    Field("filters", ctypes.c_int32, "int", "whether top_k, top_p or largest_drop restrict the draw"),
    Field("shares", ctypes.c_int32, "int", "instructions of the LM head, on an SM each"),
    Field("top_k", ctypes.c_int32, "int", "0: no restriction"),
    Field("drop_scale", ctypes.c_float, "float", "powers of two in the probability for each unit of the logit"),
    Field("largest_drop", ctypes.c_float, "float", "min_p, in powers of two below the most probable token"),
    Field("seed_low", ctypes.c_uint32, "u32", "key of the noise"),
    Field("seed_high", ctypes.c_uint32, "u32", ""),
    Field("stop_tokens", ctypes.c_int32, "int", "how many of stop_token are in use"),
    Field("stop_token", ctypes.c_int32, "int", "tokens that end the generation", MAX_STOP_TOKENS),
)


class KernelParams(ctypes.Structure):
    """The kernel's only parameter, passed by value. Fields as in PARAM_FIELDS."""

    _fields_ = [(f.name, f.host if f.count == 1 else f.host * f.count) for f in PARAM_FIELDS]


class Wait(IntEnum):
    """What a role can wait for. `index` of a report counts what the comment says."""

    INPUT = 0  # a matvec's input vector; word pair of the vector
    RESIDUAL = 1  # the residual before this block; row
    QKV = 2  # a head of the qkv vector; word of the vector
    PARTIAL_ATTENTION = 3  # the partial results of the splits; first split of the batch
    CANDIDATE = 4  # a candidate of the LM head; slot
    TOKEN = 5  # the token of the step before
    KV_READY = 6  # the append of the step before
    RING_FULL = 7  # a chunk that has been asked for; ring slot
    RING_EMPTY = 8  # a free ring slot; ring slot
    PARTIAL_FULL = 9  # the partial sums of a unit; slot
    PARTIAL_EMPTY = 10  # a free slot for partial sums; slot
    CONSUMERS = 11  # the other consumer warps
    NOTHING = 12  # the warp has not waited in this instruction
    APPENDED = 13  # KV_APPEND of a head; key/value head
    BARRIER = 14  # the other SMs; first SM of the batch
    FILTER = 15  # the other SMs, in the search for a sampling filter's threshold; round
    FILTERED = 16  # the storer, until it has applied the sampling filters


class Mark(IntEnum):
    """Points of an instruction at which a traced kernel notes its SM's clock."""

    BEGIN = 0  # the consumers turn to the instruction
    INPUT = 1  # their input is at hand
    DOTS = 2  # their last partial sums are done
    STORED = 3  # the last word is published
    LOADED = 4  # the loader has asked for the last chunk
    STALL = 5  # not a time: cycles for which the loader found the ring full
    MET = 6  # attention: queries, key and value are in shared memory
    FIRST_INPUT = 7  # the first consumer warp has its input


class ReportWord(IntEnum):
    """The words of a hang report."""

    VALID = 0
    SM = 1
    WARPS = 2  # from here on two words a warp: step << 16 | instruction, and Wait << 24 | index


REPORT_WORDS = 64


@dataclass(frozen=True)
class WarpRecord:
    """Where a warp of the SM that reports stood, and what it last had to wait for."""

    warp: int
    step: int
    instruction: int
    wait: Wait
    index: int


def decode_report(words: Sequence[int], warps: int) -> tuple[int, tuple[WarpRecord, ...]]:
    """The SM of a hang report, and its warps; those that are furthest behind come first."""
    records = []
    for warp in range(warps):
        place, wait = words[ReportWord.WARPS + 2 * warp : ReportWord.WARPS + 2 * warp + 2]
        records.append(WarpRecord(warp, place >> 16, place & 0xFFFF, Wait(wait >> 24), wait & 0xFFFFFF))
    return words[ReportWord.SM], tuple(sorted(records, key=lambda r: (r.step, r.instruction, r.wait)))
