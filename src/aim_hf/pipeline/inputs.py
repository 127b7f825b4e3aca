"""Checks and converts the arguments of an [`AIMPipeline`]: observations, actions and value maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..model.actions import floating
from ..model.processing_aim import AIMProcessor
from ..utils.checks import naming

Observation = Mapping[str, Any]  # in RoboTwin's layout


def as_actions(name: str, actions: ArrayLike | torch.Tensor, rows: int) -> torch.Tensor:
    """Actions in float64; for a single row, they may lack the first axis. Raises ValueError, with `name`, for anything
    but numbers."""
    actions = floating(actions, name).detach().cpu().double()
    return actions[None] if rows == 1 and actions.ndim == 2 else actions


def observation_rows(
    observations: Observation | Sequence[Observation | Sequence[Observation]], count: int
) -> list[list[Observation]]:
    """Observations as one list per row; for a single row the outer list may be left out.

    Raises:
        ValueError: for another number of rows than `count`, or anything but dicts.
    """
    rows = [observations] if isinstance(observations, Mapping) else observations
    if isinstance(rows, Sequence) and count == 1 and all(isinstance(observation, Mapping) for observation in rows):
        rows = [rows]
    rows = [[row] if isinstance(row, Mapping) else row for row in rows] if isinstance(rows, Sequence) else [rows]
    if wrong := [type(row).__name__ for row in rows if not isinstance(row, Sequence) or isinstance(row, str)]:
        raise ValueError(f"observations hold {wrong[0]}; expected dicts in RoboTwin's layout, one list a row.")
    if len(rows) != count:
        raise ValueError(f"observations have {len(rows)} rows; expected {count}.")
    return [list(row) for row in rows]


def observed_canvases(processor: AIMProcessor, rows: list[int], observations: list[list[Observation]]) -> np.ndarray:
    """Canvases, uint8 (B, T, H, W, 3), of T observations of each row.

    Raises:
        ValueError: for pictures that the processor refuses; it names row and observation.
    """

    def canvas(row: int, number: int, observation: Observation) -> np.ndarray:
        with naming(f"row {row}, observation {number}"):
            canvas = processor.pack_canvas(processor.observation_views(observation))
            if canvas.ndim != 3:
                raise ValueError(f"pictures have leading shape {canvas.shape[:-3]}; expected one picture a camera.")
        return canvas

    clips = [
        np.stack([canvas(row, number, observation) for number, observation in enumerate(of_row)])
        for row, of_row in zip(rows, observations, strict=True)
    ]
    return np.stack(clips)


def executed_actions(
    processor: AIMProcessor,
    actions: ArrayLike | torch.Tensor | None,
    initial_pose: torch.Tensor | None,
    rows: int,
    count: int,
) -> torch.Tensor:
    """Normalized actions (rows, count, action_dim) that were executed; for a single row, `actions` may lack the
    first axis. Raises ValueError for another shape, or numbers that the processor refuses."""
    if actions is None:
        raise ValueError("executed_actions are missing; give the actions that led to these observations.")
    actions = as_actions("executed_actions", actions, rows)
    expected = (rows, count, processor.action_dim)
    if actions.shape != expected:
        raise ValueError(
            f"executed_actions have shape {tuple(actions.shape)}; expected {expected} (rows, actions before these "
            "observations, numbers of one action)."
        )
    return processor.normalize_executed("executed_actions", actions, initial_pose)


def committed_actions(
    processor: AIMProcessor, actions: ArrayLike | torch.Tensor, rows: int, horizon: int
) -> torch.Tensor:
    """Actions (rows, d, action_dim) in physical units, d from 1 to horizon - 1; for a single row, `actions` may lack
    the first axis. Raises ValueError for another shape."""
    actions = as_actions("committed_actions", actions, rows)
    if actions.ndim != 3 or actions.shape[::2] != (rows, processor.action_dim):
        raise ValueError(
            f"committed_actions have shape {tuple(actions.shape)}; expected ({rows}, d, {processor.action_dim}) "
            "(rows, actions, numbers of one action)."
        )
    if not 1 <= actions.shape[1] < horizon:
        raise ValueError(f"{actions.shape[1]} actions are committed; expected 1 to {horizon - 1}.")
    return actions


def value_map_pixels(
    processor: AIMProcessor, value_maps: Mapping[str, np.ndarray], rows: int, frames: int
) -> torch.Tensor:
    """Canvases (rows, 3, frames, H, W) in [-1, 1], from value maps (rows, frames, H, W) of each camera. Raises
    ValueError for another shape, or maps that the processor refuses."""
    if not isinstance(value_maps, Mapping):
        raise ValueError(f"value_maps are {type(value_maps).__name__}; expected a dict, camera -> (B, T, H, W).")
    canvas = processor.pack_canvas({name: processor.value_to_rgb(value_map) for name, value_map in value_maps.items()})
    if canvas.shape[:-3] != (rows, frames):
        raise ValueError(
            f"value_maps have leading shape {canvas.shape[:-3]}; expected {(rows, frames)} (rows, frames of one "
            "chunk)."
        )
    return processor.canvas_to_pixels(canvas)


def check_generator(
    generator: torch.Generator | list[torch.Generator] | None, batch_size: int, device: torch.device
) -> None:
    """Raises ValueError unless `generator` is None, a generator that noise on `device` can be drawn from, or a list
    with one per row."""
    if generator is None:
        return
    generators = generator if isinstance(generator, list) else [generator] * batch_size
    if len(generators) != batch_size:
        raise ValueError(f"{len(generators)} generators for {batch_size} rows; give one for each row.")
    for one in generators:
        if not isinstance(one, torch.Generator) or one.device.type not in ("cpu", device.type):
            raise ValueError(
                f"generator is {one!r}; expected a torch.Generator of the CPU or of {device}, or a list of one for "
                "each row."
            )
