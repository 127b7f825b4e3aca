"""Callbacks of denoising steps, as diffusers' `callback_on_step_end`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from .sampling import OnStepEnd


def step_callback(
    pipe: DiffusionPipeline,
    function: Callable | None,
    tensor_inputs: Sequence[str],
    tensors: dict[str, torch.Tensor],
    progress_bar: tqdm,
) -> OnStepEnd:
    """Stores the latents of each denoising step in `tensors`, updates the progress bar, and calls the user's function
    with the latents that it asked for."""

    def on_step_end(step: int, timestep: torch.Tensor, latents: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors.update(latents)
        if function is not None:
            given = {name: tensors[name] for name in tensor_inputs}
            tensors.update(_returned(function(pipe, step, timestep, given), tensors))
        progress_bar.update()
        return tensors

    return on_step_end


def _returned(returned: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors returned by a callback, checked against the current `tensors`."""
    if not isinstance(returned, Mapping):
        raise ValueError(f"callback_on_step_end returned {returned!r}; expected a dict of tensors, {{}} for none.")
    for name, tensor in returned.items():
        if name not in tensors:
            raise ValueError(f"callback_on_step_end returned {name!r}; expected some of {', '.join(tensors)}.")
        if not torch.is_tensor(tensor) or tensor.shape != tensors[name].shape:
            got = tuple(tensor.shape) if torch.is_tensor(tensor) else type(tensor).__name__
            raise ValueError(f"callback_on_step_end returned {name} of {got}; expected {tuple(tensors[name].shape)}.")
    return {name: tensor.to(tensors[name]) for name, tensor in returned.items()}
