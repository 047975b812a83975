"""`load_model`: from a name to a live model, the whole pipeline on one screen."""

from __future__ import annotations

import os

import torch

from jitmk.engine.model import Model
from jitmk.engine.select import open_backend, select_backend
from jitmk.errors import ConfigError
from jitmk.model.checkpoint import Checkpoint
from jitmk.model.families import spec_from_config
from jitmk.model.files import read_config, read_generation_config, resolve
from jitmk.model.tokenizer import load_tokenizer
from jitmk.models import bundled_model_dir
from jitmk.settings import get_settings

_DTYPES = (None, "auto", "bfloat16", torch.bfloat16)


def load_model(
    id_or_path: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    backend: str = "auto",
    max_seq_len: int | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Model:
    """Loads a model and prepares it to generate.

    Args:
        id_or_path: a folder with config.json, tokenizer.json and safetensors, or a Hub id such as
            "meta-llama/Llama-3.2-1B"; None for the small model that jitmk brings along.
        revision: branch, tag or commit on the Hub.
        dtype: "auto" or "bfloat16", which are the same: weights and KV cache are bf16, sums and the residual fp32.
            Checkpoints in fp16 and fp32 are rounded to bf16 when they are loaded.
        device: "cpu", "cuda" or "cuda:N"; None leaves it to the backend.
        backend: "megakernel" (one kernel on the GPU), "reference" (the same program in plain torch on the CPU),
            "torch" (no program, on CPU or GPU), or "auto": the megakernel where there is a GPU for it, else the
            reference. `Model.backend_name` and `Model.backend_reason` say what was taken and why.
        max_seq_len: positions of the KV cache, prompt and generation together; None for the model's whole context.
        token: access token for the Hub; None or True for the one that is stored on this machine, False for none.
        cache_dir: where the Hub's files are kept; None for huggingface_hub's own cache.
        local_files_only: touch no network.

    Raises:
        BackendError, DeviceError: the backend or device that was asked for is not to be had here.
        DeviceMemoryError: weights and cache do not fit; nothing was allocated.
        ConfigError, UnsupportedModelError: the model's config, or `dtype`, is not one that jitmk runs.
        ContextLengthError: `max_seq_len` is not positive, or more than the model was made for.
        CheckpointError: the model's files are missing or damaged.
        TokenizerError: the tokenizer is damaged. (A model without one takes token ids only.)
        CodegenError, CompileError, CompilerNotFoundError: no kernel can be built.
        SettingsError: an environment variable of jitmk has a value that it cannot have.
    """
    settings = get_settings()
    _check_dtype(dtype)
    selection = select_backend(backend, device)
    if id_or_path is None:
        id_or_path = bundled_model_dir()
    folder = resolve(id_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    family = spec_from_config(read_config(folder), max_seq_len=max_seq_len)
    generation_config = read_generation_config(folder)
    tokenizer = load_tokenizer(folder)
    with Checkpoint.open(folder, family) as checkpoint:
        live = open_backend(selection, checkpoint, max_seq_len=family.spec.max_positions, settings=settings)
    return Model(
        family.spec,
        live,
        tokenizer,
        folder,
        backend_reason=selection.reason,
        generation_config=generation_config,
    )


def _check_dtype(dtype: object) -> None:
    if dtype not in _DTYPES:
        raise ConfigError(
            f"dtype={dtype!r} is not supported: jitmk computes with bf16 weights and fp32 sums whatever the "
            "checkpoint's type is; pass dtype='auto' or 'bfloat16', or none"
        )
