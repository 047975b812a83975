"""What every backend that runs on a CPU must do, whatever its steps are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest
import torch

import jitmk
from jitmk.engine.backend import DecodeBackend, DeviceSampling, PhaseOutputs
from jitmk.engine.reference_backend import ReferenceBackend
from jitmk.engine.sampling import SamplingParams, sample
from jitmk.engine.torch_backend import TorchBackend
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.program.lowering import lower
from jitmk.program.program import BufferKind
from jitmk.program.weights import plan_weights
from jitmk.reference.ops.sample_filter import NO_FILTERS, Filters
from tests.support.tiny import tiny_spec

SPEC = tiny_spec()
IDS = [(11 * i + 5) % SPEC.vocab_size for i in range(20)]


def torch_backend() -> DecodeBackend:
    return TorchBackend(SPEC, plan_weights(SPEC), RandomCheckpoint(SPEC), torch.device("cpu"), 64)


def reference_backend(splits: int = 1) -> DecodeBackend:
    return ReferenceBackend(SPEC, plan_weights(SPEC), RandomCheckpoint(SPEC), 64, splits=splits)


MAKERS = (torch_backend, reference_backend, lambda: reference_backend(splits=3))


@pytest.fixture(params=MAKERS, ids=("torch", "reference", "reference-split"))
def backend(request: pytest.FixtureRequest) -> Iterator[DecodeBackend]:
    make: Callable[[], DecodeBackend] = request.param
    backend = make()
    yield backend
    backend.close()


def test_it_says_what_it_is(backend: DecodeBackend) -> None:
    assert backend.name in ("torch", "reference")
    assert backend.max_seq_len == 64 and backend.device == torch.device("cpu")


def test_prefill_gives_the_last_logits_or_all(backend: DecodeBackend) -> None:
    every = backend.prefill(IDS, all_logits=True)
    last = backend.prefill(IDS)
    assert every.shape == (20, SPEC.vocab_size) and every.dtype is last.dtype is torch.float32
    assert torch.allclose(last, every[-1], atol=1e-5)
    every += 1  # whoever asked for them may change them


def test_decoding_a_token_is_close_to_prefilling_it(backend: DecodeBackend) -> None:
    expected = backend.prefill(IDS, all_logits=True)
    backend.prefill(IDS[:12])
    for at in range(12, 20):
        logits = backend.step_logits(IDS[at], at)
        assert logits.shape == (SPEC.vocab_size,) and logits.dtype is torch.float32
        # The step rounds vectors between phases to bf16, 2^-9 each on average, some ten times over.
        assert (logits - expected[at]).norm() < 0.02 * expected[at].norm()


SAMPLINGS = (
    DeviceSampling(),
    DeviceSampling(0.8, 2**63 + 5),
    DeviceSampling(0.8, 3, filters=Filters(top_k=7)),
    DeviceSampling(1.5, 4, filters=Filters(top_p=0.6)),
    DeviceSampling(1.5, 5, filters=Filters(min_p=0.3)),
    DeviceSampling(2.0, 6, filters=Filters(30, 0.8, 0.01)),
    DeviceSampling(filters=Filters(top_k=1)),
)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_its_own_sampling_draws_what_the_host_would(backend: DecodeBackend, sampling: DeviceSampling) -> None:
    filters = sampling.filters if sampling.filtered else NO_FILTERS
    params = SamplingParams(temperature=sampling.temperature, seed=sampling.seed, **asdict(filters))
    backend.prefill(IDS)
    expected, token = [], IDS[-1]
    for at in range(20, 30):
        token, _ = sample(backend.step_logits(token, at), params, at + 1, ())
        expected.append(token)
    backend.reset()
    backend.prefill(IDS)
    assert list(backend.decode_stream(IDS[-1], 20, 10, sampling)) == expected


def test_a_stream_may_be_given_up_and_its_positions_used_again(backend: DecodeBackend) -> None:
    backend.prefill(IDS)
    expected = list(backend.decode_stream(3, 20, 8, DeviceSampling()))
    backend.prefill(IDS)
    stream = backend.decode_stream(9, 20, 8, DeviceSampling())
    next(stream)
    next(stream)
    stream.close()
    assert list(backend.decode_stream(3, 20, 8, DeviceSampling())) == expected


def test_it_shows_every_phase(backend: DecodeBackend) -> None:
    assert isinstance(backend, PhaseOutputs)
    backend.prefill(IDS)
    expected = backend.step_logits(4, 20).clone()
    outputs = backend.phase_outputs(4, 20)
    shapes = {name: values.shape for name, values in outputs.items()}
    of_splits = {name for name in outputs if name.endswith((".partial", ".lse"))}
    program = lower(SPEC, 3 if of_splits else 1)
    assert shapes == {b.name: (b.values,) for b in program.buffers if b.kind is not BufferKind.CANDIDATE} | {
        "logits": (SPEC.vocab_size,)
    }
    assert torch.equal(outputs["logits"], expected)
    assert all(values.dtype is torch.float32 for values in outputs.values())
    before = {name: values.clone() for name, values in outputs.items()}
    backend.phase_outputs(5, 20)
    assert all(torch.equal(outputs[name], before[name]) for name in before), "a later step must not change them"
    keys, values = backend.cached(1, 21)
    assert keys.shape == values.shape == (SPEC.num_kv_heads, 21, SPEC.head_dim)


def test_a_closed_backend_says_so(backend: DecodeBackend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(jitmk.BackendError, match="closed"):
        backend.prefill(IDS)
    with pytest.raises(jitmk.BackendError, match="closed"):
        backend.step_logits(1, 0)
