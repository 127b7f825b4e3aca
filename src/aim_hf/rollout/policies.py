"""The policy protocol of the evaluator, and its implementation by an AIM pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ..envs import interface
from ..envs.base import ActionMode, Interface, Observation
from ..model.checkpoint import fingerprint, local_folder
from ..pipeline.pipeline_aim import AIMPipeline
from ..pipeline.sampling_config import SamplingConfig
from ..pipeline.session import AIMSession
from ..utils.checks import check_whole
from .rows import ROWS, filled

Pictures = Literal["none", "value_maps", "all"]

# Settings by which the sampling of two evaluations may differ.
OPTIONS = ("dtype", *(field.name for field in fields(SamplingConfig)), "delay", "real_time_chunking")


@dataclass(frozen=True)
class Prediction:
    """One chunk of B rows with T actions and F frames.

    actions: (B, T, action_dim) in physical units. value_maps: camera -> (B, F, H, W) in [0, 1]. frames: camera ->
    (B, F, H, W, 3) in [0, 1]. The latter two are None if they weren't requested or the policy doesn't predict them.
    """

    actions: np.ndarray
    value_maps: dict[str, np.ndarray] | None = None
    frames: dict[str, np.ndarray] | None = None


class Policy(Protocol):
    """Acts in a batch of episodes that advance together, chunk by chunk. Rows don't influence each other.

    settings: JSON-able dict that identifies this policy; it has at least "policy", the name.
    interface: requirements on environments.
    pixel_size: camera -> width and height of a pixel of it, as fractions of the canvas's width.
    """

    settings: dict[str, Any]
    interface: Interface
    action_mode: ActionMode
    actions_per_chunk: int
    actions_per_frame: int  # control steps between two observations
    pixel_size: dict[str, tuple[float, float]]

    def start(self, instructions: list[str], seeds: list[int]) -> None:
        """Starts a batch. Each row has its own random seed."""

    def keep(self, rows: list[int]) -> None:
        """Continues with these rows alone, given in ascending order; the others have ended."""

    def predict(
        self,
        observations: list[list[Observation]],
        executed_actions: np.ndarray | None = None,
        value_maps: Mapping[str, np.ndarray] | None = None,
        pictures: Pictures = "none",
    ) -> Prediction:
        """The next chunk.

        Args:
            observations: of each row, the first observation; later those after every `actions_per_frame` actions.
            executed_actions: (B, T, action_dim), the last chunk of the rows that are left; None at first.
            value_maps: camera -> (B, F, H, W) in [0, 1], used instead of the predicted maps.
            pictures: predictions to decode besides the actions; "all": value maps and frames.
        """


class AIMPolicy:
    """An [`AIMPipeline`] as a [`Policy`].

    Args:
        settings: identifies the checkpoint; the arguments below are added.
        sampling_config: default: the pipeline's own. Guidance uses the empty instruction as the negative prompt.
        delay: inference delay in control steps. Meanwhile the robot executes the lookahead of the last chunk, so the
            first `delay` actions of each chunk but the first come from the chunk before.
        real_time_chunking: whether a new chunk is conditioned on these actions, so that it continues them.

    Raises:
        ValueError: for a delay that is negative or longer than the model's lookahead or a chunk.
    """

    def __init__(
        self,
        pipe: AIMPipeline,
        settings: dict[str, Any],
        sampling_config: SamplingConfig | None = None,
        delay: int = 0,
        real_time_chunking: bool = True,
    ) -> None:
        self.pipe = pipe
        self.sampling_config = pipe.sampling_config if sampling_config is None else sampling_config
        check_whole("delay", delay, least=0)
        ahead = pipe.model.config.action_horizon - pipe.actions_per_chunk
        if delay > min(ahead, pipe.actions_per_chunk):
            raise ValueError(
                f"delay is {delay} control steps; this model looks {ahead} ahead, in chunks of "
                f"{pipe.actions_per_chunk}, and can't bridge more than the smaller of them."
            )
        self.delay, self.real_time_chunking = delay, real_time_chunking
        self.settings = settings | asdict(self.sampling_config) | {"delay": delay}
        if delay:
            self.settings["real_time_chunking"] = real_time_chunking
        self.interface = interface_of(pipe)
        self.action_mode: ActionMode = pipe.processor.action_space
        self.actions_per_chunk = pipe.actions_per_chunk
        self.actions_per_frame = pipe.actions_per_frame
        self.pixel_size = {}
        for name, camera in pipe.processor.cameras.items():
            (height, width), (_, _, slot_height, slot_width) = camera["size"], camera["slot"]
            canvas_width = pipe.processor.canvas_size[1]
            self.pixel_size[name] = (slot_width / width / canvas_width, slot_height / height / canvas_width)
        self._sessions: list[AIMSession] = []
        self._generators: list[list[torch.Generator]] = []
        self._meanwhile: list[np.ndarray | None] = []  # actions of each session's rows during the inference delay
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        device: str | torch.device = "cpu",
        dtype: str | None = None,
        delay: int = 0,
        real_time_chunking: bool = True,
        **sampling: Any,
    ) -> AIMPolicy:
        """Loads a pipeline folder or a Hub repository.

        Args:
            dtype: name of the `dtype` of `AIMPipeline.from_pretrained`; added to the settings if given.
            delay, real_time_chunking: as in `__init__`.
            sampling: fields of the pipeline's [`SamplingConfig`] to override, such as `num_inference_steps=1`.

        Raises:
            FileNotFoundError: if there is neither such a folder nor such a repository.
            OSError, ValueError: for a damaged checkpoint, as `AIMPipeline.from_pretrained`.
        """
        try:
            folder = local_folder(name_or_path)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise FileNotFoundError(
                f"policy {str(name_or_path)!r} is no folder on this machine, nor could it be loaded from the Hub "
                f"({type(error).__name__}). Give the folder of an AIMPipeline, or the id of a repository that you may "
                "read."
            ) from error
        pipe = AIMPipeline.from_pretrained(folder, dtype=dtype).to(device)
        settings = {"policy": str(name_or_path), "policy_sha256": fingerprint(folder)}
        settings |= {} if dtype is None else {"dtype": dtype}
        return cls(pipe, settings, replace(pipe.sampling_config, **sampling), delay, real_time_chunking)

    @property
    def negative_prompt(self) -> str | None:
        """The negative prompt of its sessions; None without guidance."""
        return None if self.sampling_config.guidance_scale == 1 else ""

    def start(self, instructions: list[str], seeds: list[int]) -> None:
        groups = [slice(first, first + ROWS) for first in range(0, len(seeds), ROWS)]
        self._sessions = [
            self.pipe.start(filled(instructions[group]), negative_prompt=self.negative_prompt) for group in groups
        ]
        self._generators = [[torch.Generator().manual_seed(seed) for seed in filled(seeds[group])] for group in groups]
        self._meanwhile = [None] * len(groups)

    def keep(self, rows: list[int]) -> None:
        session = AIMSession.stack(self._sessions)
        generators = [generator for of_session in self._generators for generator in of_session]
        meanwhile = None if self._meanwhile[0] is None else np.concatenate(self._meanwhile)
        groups = [filled(rows[first : first + ROWS]) for first in range(0, len(rows), ROWS)]
        self._sessions = [session.select(group) for group in groups]
        self._generators = [[generators[row].clone_state() for row in group] for group in groups]
        self._meanwhile = [None if meanwhile is None else meanwhile[group] for group in groups]

    def predict(
        self,
        observations: list[list[Observation]],
        executed_actions: np.ndarray | None = None,
        value_maps: Mapping[str, np.ndarray] | None = None,
        pictures: Pictures = "none",
    ) -> Prediction:
        parts = []
        for index, (session, generators) in enumerate(zip(self._sessions, self._generators, strict=True)):
            rows = slice(index * ROWS, (index + 1) * ROWS)
            observed, first = filled(observations[rows]), None
            if executed_actions is None:
                first = [row[0] for row in observed]
            else:
                self.pipe.append(session, observed, np.stack(filled(executed_actions[rows])))
            meanwhile = self._meanwhile[index]
            out = self.pipe(
                first,
                session=session,
                value_maps=value_maps and {name: np.stack(filled(maps[rows])) for name, maps in value_maps.items()},
                committed_actions=meanwhile if self.real_time_chunking else None,
                generator=generators,
                output_type="latent" if pictures == "none" else "np",
                decode_frames=pictures == "all",
                sampling_config=self.sampling_config,
            )
            actions = np.asarray(out.actions).copy()
            if meanwhile is not None:
                actions[:, : self.delay] = meanwhile
            if self.delay:
                self._meanwhile[index] = np.asarray(out.lookahead_actions)[:, : self.delay]
            parts.append(
                Prediction(
                    actions=actions,
                    value_maps=None if pictures == "none" else out.value_maps,
                    frames=out.frames,
                )
            )
        count = len(observations)
        return Prediction(
            actions=np.concatenate([part.actions for part in parts])[:count],
            value_maps=_joined([part.value_maps for part in parts], count),
            frames=_joined([part.frames for part in parts], count),
        )


def interface_of(pipe: AIMPipeline) -> Interface:
    """The requirements of a pipeline on environments."""
    processor = pipe.processor
    sizes = {name: tuple(camera["size"]) for name, camera in processor.cameras.items()}
    return Interface({processor.action_space: processor.action_dim}, sizes, pipe.fps)


def check_fits(needed: Interface, suite: str, split: str) -> None:
    """Checks a policy's requirements against the interface of a suite. No environment is opened.

    Raises:
        ValueError: if they differ; names both values.
    """
    there, differing = interface(suite, split), []
    for camera, size in needed.picture_sizes.items():
        if camera not in there.picture_sizes:
            differing.append(f"it looks at {camera}, and there are {', '.join(there.picture_sizes)}")
        elif size != there.picture_sizes[camera]:
            sizes = (f"{height} x {width}" for height, width in (size, there.picture_sizes[camera]))
            differing.append(f"{camera} is {' and there '.join(sizes)} (height x width)")
    for mode, dim in needed.action_dims.items():
        has = there.action_dims.get(mode)
        if None not in (dim, has) and dim != has:
            differing.append(f"an action {mode!r} has {dim} numbers, and there {has}")
    if None not in (needed.fps, there.fps) and abs(needed.fps / there.fps - 1) > 0.01:
        differing.append(f"it acts {needed.fps:g} times a second, and there are {there.fps:g} control steps")
    if differing:
        raise ValueError(
            f"the policy doesn't fit suite {suite!r}: {'; '.join(differing)}. Choose the suite whose episodes it was "
            "trained on, or train it on this one's."
        )


def _joined(parts: list[dict[str, np.ndarray] | None], count: int) -> dict[str, np.ndarray] | None:
    if parts[0] is None:
        return None
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
