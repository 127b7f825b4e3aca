"""Loads components of a pipeline folder, AIM's or Wan's, and checks that each is complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SchedulerMixin
from transformers import AutoModelForTextEncoding, PreTrainedModel, ProcessorMixin

from ..model.checkpoint import as_dtype, check_all_loaded, component_tensors
from ..utils.versions import PIPELINE_DTYPE

# Base class of each component; a model may be wrapped by PEFT or torch.compile.
COMPONENTS = {
    "vae": torch.nn.Module,
    "text_encoder": torch.nn.Module,
    "processor": ProcessorMixin,
    "model": torch.nn.Module,
    "scheduler": SchedulerMixin,
    "action_scheduler": SchedulerMixin,
}


def check_components(components: Mapping[str, Any]) -> None:
    """Raises ValueError for a component that is None or no instance of its class in `COMPONENTS`."""
    for name, component in components.items():
        if not isinstance(component, COMPONENTS[name]):
            raise ValueError(
                f"{name} is {'None' if component is None else type(component).__name__}; expected a "
                f"{COMPONENTS[name].__name__}. A pipeline needs all of {', '.join(COMPONENTS)}."
            )


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE of a pipeline folder, AIM's or Wan's, in float32.

    Raises:
        OSError: for a damaged, missing or pickled file, which it names.
        ValueError: for tensors that are missing or unknown.
    """
    return _load_checked(folder, "vae", AutoencoderKLWan, torch_dtype=torch.float32)


def load_text_encoder(folder: Path, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The text encoder of a pipeline folder, AIM's or Wan's, in `dtype`; as stored if not given or "auto". Raises as
    `load_vae`."""
    dtype = "auto" if dtype in (None, "auto") else as_dtype(dtype)
    return _load_checked(folder, "text_encoder", AutoModelForTextEncoding, dtype=dtype)


def _load_checked(folder: Path, name: str, kind: type, **kwargs: Any) -> torch.nn.Module:
    stored = component_tensors(folder, [name])
    module = kind.from_pretrained(folder / name, use_safetensors=True, **kwargs)
    check_all_loaded(module, stored[name], source=str(folder / name))
    return module


def component_dtypes(
    dtype: torch.dtype | str | Mapping[str, torch.dtype | str] | None,
) -> dict[str, dict[str, torch.dtype]]:
    """The dtype argument of diffusers' `from_pretrained`, by its name; empty if all components keep their stored
    dtype."""
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return {}
    dtypes = {"vae": torch.float32} | (dict(dtype) if isinstance(dtype, Mapping) else {"default": dtype})
    if unknown := sorted(dtypes.keys() - {*COMPONENTS, "default"}):
        raise ValueError(f"dtype has {unknown}; expected some of {', '.join(COMPONENTS)} and default.")
    return {PIPELINE_DTYPE: {name: as_dtype(of_component) for name, of_component in dtypes.items()}}
