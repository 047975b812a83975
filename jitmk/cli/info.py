"""`jitmk info`: what jitmk finds on this machine."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version

from jitmk import __version__
from jitmk.arch import GpuArch
from jitmk.errors import DeviceError, JitmkError

_PACKAGES = (
    "torch",
    "cuda-python",
    "cuda-bindings",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-nvrtc",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser of `jitmk`."""
    parser = commands.add_parser(
        "info",
        help="show versions, GPU, compilers, cache and settings",
        description="Show what jitmk finds on this machine: what to put into a bug report.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command. Something that is missing is shown as such; it is no error."""
    print(f"jitmk {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in _PACKAGES:
        print(f"  {name:24} {_version(name)}")
    print(f"GPU       {_or_reason(_gpu)}")
    print(f"compiler  {_or_reason(_compiler)}")
    print(f"cache     {_or_reason(_cache)}")
    print(f"tuning    {_or_reason(_tuning)}")
    print(f"backend   {_or_reason(_backend)}")
    print(f"settings\n{_or_reason(_settings)}")
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _or_reason(what: Callable[[], str]) -> str:
    try:
        return what()
    except JitmkError as error:
        return f"none: {error}"


def _gpu() -> str:
    from jitmk.cuda.device import Device

    with Device.open() as gpu:
        driver = ".".join(map(str, gpu.driver))
        return f"{gpu}, {gpu.total_bytes / 1e9:.0f} GB, the driver supports CUDA {driver}"


def _compiler() -> str:
    from jitmk.jit import select_compiler
    from jitmk.settings import get_settings

    compiler = select_compiler(GpuArch.parse(GpuArch.supported()[0]), get_settings())
    return f"{compiler.name} {'.'.join(map(str, compiler.version))} at {compiler.location}"


def _cache() -> str:
    from jitmk.jit import KernelCache
    from jitmk.settings import get_settings

    cache = KernelCache.from_settings(get_settings())
    return f"{cache.root}, at most {cache.max_bytes / 2**20:.0f} MiB (jitmk-cache stats shows what is in it)"


def _tuning() -> str:
    """What `jitmk tune` stored: for this GPU where there is one, else for any."""
    from jitmk.cuda.device import Device
    from jitmk.jit import KernelCache, upkeep
    from jitmk.settings import get_settings

    settings = get_settings()
    cache = KernelCache.from_settings(settings)
    cache.check_owner()
    records = [record for _, record in upkeep.tunings(cache) if record is not None]
    try:
        with Device.open() as gpu:
            records = [r for r in records if (r.key.gpu, r.key.sms) == (gpu.name, gpu.arch.sm_count)]
    except DeviceError:
        pass
    if not records:
        return "none stored: models run with the defaults of the cost model"
    count = f"{len(records)} stored{'' if settings.tuning else ', ignored for JITMK_TUNING=off'}"
    return "\n  ".join([count, *(f"kernel {r.key.kernel[:16]}: {r}" for r in records)])


def _backend() -> str:
    from jitmk.engine.select import select_backend

    selection = select_backend()
    return f"{selection.backend} on {selection.device} ({selection.reason})"


def _settings() -> str:
    from jitmk.settings import VARIABLES, get_settings

    settings = get_settings()
    by_field = {variable.field: variable.name for variable in VARIABLES}
    return "\n".join(
        f"  {by_field[field.name]:30} {getattr(settings, field.name)}"
        for field in fields(settings)
        if field.name in by_field
    )
