"""The output of a call of the pipeline."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@dataclass
class AIMPipelineOutput(BaseOutput):
    """
    Imagined frames, value maps and actions of one chunk, for B rows and T = `pipe.frames_per_chunk` frames. Frame k
    follows action (k + 1) * `pipe.actions_per_frame` of the chunk.

    frames: camera -> imagined RGB in [0, 1]: `np` (B, T, H, W, 3), `pt` (B, T, 3, H, W), `pil` a list of T pictures
        per row; `latent`: one tensor, the normalized latents (B, C, F, h, w); None with `decode_frames=False`.
    value_maps: camera -> value maps in [0, 1]: (B, T, H, W), `pil` a list of T gray pictures per row; `latent`: the
        normalized latents. The actions were decoded from these maps.
    actions: (B, `pipe.actions_per_chunk`, action_dim) in physical units, absolute; an array with `np` and `pil`.
    lookahead_actions: (B, action_lookahead_frames * actions_per_latent_frame, action_dim), predicted actions after the
        chunk; None for a model without lookahead. In real-time chunking, the robot executes them during the inference
        delay of the next chunk.
    """

    frames: dict[str, Any] | torch.Tensor | None
    value_maps: dict[str, Any] | torch.Tensor
    actions: np.ndarray | torch.Tensor
    lookahead_actions: np.ndarray | torch.Tensor | None = None

    def __repr__(self) -> str:
        shapes = (f"{field.name}={_shape(getattr(self, field.name))}" for field in fields(self))
        return f"{type(self).__name__}({', '.join(shapes)})"


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {_shape(clips)}" for name, clips in value.items()) + "}"
    if isinstance(value, list):
        return f"{len(value)} x {len(value[0])} pictures"
    return "None" if value is None else str(tuple(value.shape))


def as_output_type(cameras: dict[str, np.ndarray], output_type: str) -> dict[str, Any]:
    """RGB (B, T, H, W, 3) or value maps (B, T, H, W) in [0, 1] as arrays, tensors or lists of pictures."""
    if output_type == "pt":
        tensors = {name: torch.from_numpy(np.ascontiguousarray(clips)) for name, clips in cameras.items()}
        return {name: clips.permute(0, 1, 4, 2, 3) if clips.ndim == 5 else clips for name, clips in tensors.items()}
    if output_type == "pil":
        pixels = {name: (clips * 255).round().astype(np.uint8) for name, clips in cameras.items()}
        return {name: [[PIL.Image.fromarray(p) for p in clip] for clip in clips] for name, clips in pixels.items()}
    return cameras
