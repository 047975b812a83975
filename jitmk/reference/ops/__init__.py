"""Every opcode in plain torch, one file each, on any subset of a phase's units.

All functions take and return fp32 tensors whose first dimension is the batch of sequences (`tokens`); values that the
device holds as bf16 are fp32 numbers that bf16 represents. Sums run in the type `sums`: fp32 as on the device, or fp64,
in which the sums of bf16 products are exact for all practical purposes, so that neither their order nor the subset of
units shows in the result.
"""
