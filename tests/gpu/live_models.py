"""Small models with random weights, live on the GPU. They differ where the device code does."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from jitmk import jit
from jitmk.codegen import render
from jitmk.cuda.device import Device
from jitmk.engine.megakernel import MegakernelBackend
from jitmk.engine.step_programs import kernel_variants
from jitmk.engine.tuning import default_tuning
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec, RopeKind
from jitmk.program.weights import plan_weights
from jitmk.settings import Settings
from tests.support.features import FEATURES, feature_spec
from tests.support.shapes import llama
from tests.support.tiny import ROPES

MAX_SEQ_LEN = 512
SEED = 1


def _with_rope(spec: ModelSpec, kind: RopeKind) -> ModelSpec:
    return replace(spec, ropes=(replace(ROPES[kind], rotary_dim=spec.head_dim),))


LLAMAS = {
    "gqa-64": llama(256, 704, 2, 4, 2, 64, vocab_size=1003, tied=True),
    "biases-80": _with_rope(
        llama(320, 640, 2, 4, 1, 80, vocab_size=1000, qkv_bias=True, o_bias=True, mlp_bias=True), RopeKind.LLAMA3
    ),
    "mha-96": _with_rope(llama(384, 640, 2, 4, 4, 96, vocab_size=1000), RopeKind.YARN),
    "gqa-128": llama(1536, 2304, 3, 12, 2, 128, vocab_size=5003),
    "mqa-256": llama(512, 640, 2, 8, 1, 256, vocab_size=1000),
    "mqa-16": llama(1024, 2304, 2, 16, 1, 64, vocab_size=5003, tied=True),
}

UNFUSED = "-unfused"
"""Behind the name of a model whose program has every part as a phase of its own."""

SPECS = {
    **LLAMAS,
    **{name: feature_spec(name) for name in FEATURES if name != "plain"},
    **{
        name + UNFUSED: feature_spec(name) for name in ("two-ropes", "learned-positions", "layer-post-norm", "parallel")
    },
}


def open_backend(
    name: str,
    gpu: Device,
    settings: Settings,
    *,
    max_seq_len: int = MAX_SEQ_LEN,
    policy: str = "round_robin",
) -> MegakernelBackend:
    """A model of `SPECS` with the weights of `source`; whoever opens it closes it."""
    spec = SPECS[name]
    return MegakernelBackend(
        spec,
        plan_weights(spec),
        source(name),
        gpu,
        max_seq_len=min(max_seq_len, spec.max_positions),
        settings=settings,
        tuning=replace(default_tuning(spec, gpu.arch, max_seq_len), policy=policy),
        fused=not name.endswith(UNFUSED),
        progress=False,
    )


def source(name: str) -> RandomCheckpoint:
    """The weights of a model, on the CPU, the same at every call."""
    return RandomCheckpoint(SPECS[name], SEED)


@dataclass(frozen=True)
class Live:
    """A model that tests share: they leave nothing behind but a cache that may be overwritten."""

    spec: ModelSpec
    fused: bool
    backend: MegakernelBackend


class LiveModels:
    """The models of `SPECS`, loaded when they are first asked for; all kernels are compiled in the background."""

    def __init__(self, gpu: Device, settings: Settings, pool: ThreadPoolExecutor) -> None:
        self._gpu = gpu
        self._settings = settings
        self._compiled: dict[str, Future[jit.CompiledKernel]] = {
            name: pool.submit(self._compile, spec, not name.endswith(UNFUSED)) for name, spec in SPECS.items()
        }
        self._live: dict[str, Live] = {}

    def __getitem__(self, name: str) -> Live:
        if name not in self._live:
            self._compiled[name].result()  # from here on it is in the cache of this run
            self._live[name] = Live(
                SPECS[name], not name.endswith(UNFUSED), open_backend(name, self._gpu, self._settings)
            )
        return self._live[name]

    def close(self) -> None:
        for live in self._live.values():
            live.backend.close()

    def _compile(self, spec: ModelSpec, fused: bool) -> jit.CompiledKernel:
        arch = self._gpu.arch
        return jit.build(render(kernel_variants(spec, fused), spec, arch), arch, settings=self._settings)
