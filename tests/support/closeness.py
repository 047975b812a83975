"""How close is close: every tolerance of the GPU tests in one table, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """What |actual - expected| may be.

    Attributes:
        relative, absolute: of each element: absolute + relative * |expected|; infinite: not looked at.
        norm: of |actual - expected| / |expected| over the whole vector; infinite: not looked at.
        why: where the figures come from.
    """

    relative: float
    absolute: float
    norm: float
    why: str


_ANY = float("inf")

TOLERANCES = {
    "moved": Tolerance(0.0, 0.0, 0.0, "bf16 values that are copied, and fp32 made from them"),
    "fp32 sum": Tolerance(
        1e-5,
        2e-4,
        1e-4,
        "dot products of about unit size: a tensor core adds 16 products at a time and cuts off what lies below its "
        "accumulator's 24 bits; at most 112 such steps a warp, 2^-23 each, of partial sums of up to 4",
    ),
    "bf16 of a sum": Tolerance(
        2**-7,
        2e-4,
        2**-8,
        "the sums above, rounded to 8 bits: where two of them straddle a boundary, they end up one step (2^-7) apart, "
        "which happens to few of them",
    ),
    "fp32 sum of rounded values": Tolerance(
        2**-7,
        4e-3,
        2**-8,
        "dot products of about unit size of values that the device rounded to bf16 after a norm: a norm that is off in "
        "its last bits of fp32 rounds a few of n values the other way, each 2^-8 of one of n products of size n^-1/2",
    ),
    "bf16 of a sum of rounded values": Tolerance(2**-6, 4e-3, 2**-7, "the sums above, rounded once more"),
    "rounded": Tolerance(
        2**-7, 1e-6, 2**-9, "fp32 arithmetic of a few steps, fused on the device, then rounded to bf16: one step apart"
    ),
    "attention": Tolerance(
        _ANY,
        _ANY,
        2**-7,
        "probabilities are rounded to bf16 relative to the running maximum of one warp instead of the whole maximum, "
        "each 2^-9 off at most; their errors are independent, as the values are, so they keep that ratio to the sum; "
        "then the output is rounded to bf16, 2^-9",
    ),
    "softmax state": Tolerance(
        5e-3,
        5e-3,
        _ANY,
        "a score of |q| |k| / sqrt(d) of about 10; a rotated query may be one bf16 step off, 2^-8 of one of its "
        "d products",
    ),
    "merged": Tolerance(2**-7, 1e-4, 2**-9, "fp32 sums with 2^x to 2^-22, rounded to bf16: one step apart"),
    "noise": Tolerance(1e-5, 1e-5, _ANY, "two logarithms in fp32, each a few ulp (2^-24) off, of numbers below 20"),
    "phase of a model": Tolerance(
        _ANY,
        _ANY,
        0.02,
        "each phase rounds to bf16 (2^-9) once or twice; roundings that fell differently in earlier phases and in the "
        "cache pile up over two or three layers",
    ),
    "phase of a tiny model": Tolerance(
        _ANY,
        _ANY,
        0.04,
        "the same with vectors of 64 values, of which each rounding that fell differently is a larger part, and with "
        "roundings between parts that are phases of their own",
    ),
    "two ways": Tolerance(
        _ANY,
        _ANY,
        0.03,
        "prefill in torch rounds each projection and the attention to bf16 where the kernel keeps fp32: each is within "
        "about 0.02 of the truth, in independent directions",
    ),
}


def assert_close(kind: str, actual: torch.Tensor, expected: torch.Tensor, what: object = "") -> None:
    """Compares where the values are finite first, then each value, then the whole.

    Args:
        kind: a name in `TOLERANCES`.
        actual, expected: of one shape, on any device.
        what: for the message.
    """
    tolerance = TOLERANCES[kind]
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    for name, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = test(actual) != test(expected)
        assert not bool(wrong.any()), f"{what}: {int(wrong.sum())} values are {name} in one only, {_first(wrong)}"
    finite = torch.isfinite(expected)
    error = torch.where(finite, actual - expected, 0.0).abs()
    size = torch.where(finite, expected, 0.0).abs()
    if tolerance.absolute != _ANY:
        wrong = error > tolerance.absolute + tolerance.relative * size
        if bool(wrong.any()):
            at = wrong.flatten().nonzero()[0, 0]
            raise AssertionError(
                f"{what}: {int(wrong.sum())} of {wrong.numel()} values are off, {_first(wrong)}: "
                f"{float(actual.flatten()[at])} instead of {float(expected.flatten()[at])}; allowed for {kind!r}: "
                f"{tolerance.absolute} + {tolerance.relative} of the value"
            )
    if tolerance.norm != _ANY:
        relative = relative_norm(actual, expected)
        assert relative <= tolerance.norm, f"{what}: relative error {relative:.3g}, allowed {tolerance.norm} ({kind!r})"


def relative_norm(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| over the finite values; 0 where both are zero throughout."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    finite = torch.isfinite(expected)
    error, size = (actual - expected)[finite].norm(), expected[finite].norm()
    return 0.0 if float(error) == 0.0 else float(error / size)


def _first(wrong: torch.Tensor) -> str:
    return f"first at {tuple(int(i) for i in wrong.nonzero()[0])}"
