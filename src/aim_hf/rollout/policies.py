"""The policy protocol of the evaluator, and its implementation by an AIM pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ..envs import interface
from ..envs.base import ActionMode, Interface, Observation
from ..model.checkpoint import fingerprint, local_folder
from ..pipeline.loading_config import PLACEMENT, LoadingConfig
from ..pipeline.pipeline_aim import AIMPipeline
from ..pipeline.sampling_config import SamplingConfig
from ..pipeline.session import AIMSession
from ..pipeline.signals import frame_drift, map_entropy
from ..utils.checks import noise_seed
from .execution_config import ExecutionConfig
from .rows import ROWS, filled

Pictures = Literal["none", "value_maps", "all"]

# Settings by which the sampling of two evaluations may differ.
OPTIONS = tuple(
    option.name
    for config in (LoadingConfig, SamplingConfig, ExecutionConfig)
    for option in fields(config)
    if option.name not in PLACEMENT
)


@dataclass(frozen=True)
class Prediction:
    """The next T actions of B rows: a chunk, or the part of it that is executed before the next prediction.

    actions: (B, T, action_dim) in physical units. value_maps: camera -> (B, F, H, W) in [0, 1]. frames: camera ->
    (B, F, H, W, 3) in [0, 1]. Both are of a whole chunk, and None if they weren't requested or the policy doesn't
    predict them. planned: (B,) bool, rows that planned anew; None for all of them.
    """

    actions: np.ndarray
    value_maps: dict[str, np.ndarray] | None = None
    frames: dict[str, np.ndarray] | None = None
    planned: np.ndarray | None = None


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
        """The next actions.

        Args:
            observations: of each row, the first observation; later those after every `actions_per_frame` actions.
            executed_actions: (B, T, action_dim), the last actions of the rows that are left; None at first.
            value_maps: camera -> (B, F, H, W) in [0, 1], used instead of the predicted maps.
            pictures: predictions to decode besides the actions; "all": value maps and frames.
        """


@dataclass
class _Row:
    """An episode in progress, and its latest plan.

    generator: of its noise. seen, executed: observations and actions since the plan.
    actions: (P, action_dim), the plan with its lookahead, of which `position` actions are handed out; None before the
        first plan.
    value_maps, frames: camera -> clip of the plan, if they were decoded.
    """

    session: AIMSession
    generator: torch.Generator
    seen: list[Observation] = field(default_factory=list)
    executed: list[np.ndarray] = field(default_factory=list)
    actions: np.ndarray | None = None
    position: int = 0
    value_maps: dict[str, np.ndarray] | None = None
    frames: dict[str, np.ndarray] | None = None


class AIMPolicy:
    """An [`AIMPipeline`] as a [`Policy`].

    Args:
        settings: identifies the checkpoint; the arguments below are added.
        sampling_config: default: the pipeline's own. Guidance uses the empty instruction as the negative prompt.
        execution_config: default: whole chunks without delay.

    Raises:
        ValueError: for a delay that is longer than the model's lookahead, a chunk or `n_action_steps`, or an
            `n_action_steps` that isn't a multiple of `actions_per_frame` or longer than a chunk.
    """

    def __init__(
        self,
        pipe: AIMPipeline,
        settings: dict[str, Any],
        sampling_config: SamplingConfig | None = None,
        execution_config: ExecutionConfig | None = None,
    ) -> None:
        self.pipe = pipe
        self.execution_config = execution_config or ExecutionConfig()
        self.sampling_config = pipe.sampling_config if sampling_config is None else sampling_config
        self._check_execution()
        self.n_action_steps = self.execution_config.n_action_steps or pipe.actions_per_chunk
        self.settings = settings | asdict(self.sampling_config) | self.execution_config.settings()
        self.interface = interface_of(pipe)
        self.action_mode: ActionMode = pipe.processor.action_space
        self.actions_per_chunk = pipe.actions_per_chunk
        self.actions_per_frame = pipe.actions_per_frame
        self.pixel_size = {}
        for name, camera in pipe.processor.cameras.items():
            (height, width), (_, _, slot_height, slot_width) = camera["size"], camera["slot"]
            canvas_width = pipe.processor.canvas_size[1]
            self.pixel_size[name] = (slot_width / width / canvas_width, slot_height / height / canvas_width)
        self._rows: list[_Row] = []
        pipe.set_progress_bar_config(disable=True)

    def _check_execution(self) -> None:
        chunk, frame = self.pipe.actions_per_chunk, self.pipe.actions_per_frame
        delay, n_action_steps = self.execution_config.delay, self.execution_config.n_action_steps
        ahead = self.pipe.model.config.action_horizon - chunk
        if delay > min(ahead, chunk):
            raise ValueError(
                f"delay is {delay} control steps; this model looks {ahead} ahead, in chunks of {chunk}, and can't "
                "bridge more than the smaller of them."
            )
        if n_action_steps is not None and (n_action_steps % frame or n_action_steps > chunk):
            raise ValueError(
                f"n_action_steps is {n_action_steps}; expected a multiple of {frame}, the actions between two frames, "
                f"of at most {chunk}, the actions of a chunk."
            )
        if n_action_steps is not None and delay > n_action_steps:
            raise ValueError(
                f"delay is {delay} control steps, and n_action_steps {n_action_steps}: a plan would begin before the "
                "one that it continues has arrived. Lower delay, or raise n_action_steps to at least as much."
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> AIMPolicy:
        """Loads a pipeline folder or a Hub repository.

        Args:
            options: fields of a [`LoadingConfig`], such as `dtype="bfloat16"`, of the pipeline's [`SamplingConfig`] to
                override, such as `num_inference_steps=1`, and of an [`ExecutionConfig`].

        Raises:
            FileNotFoundError: if there is neither such a folder nor such a repository.
            OSError, ValueError: for a damaged checkpoint, as `AIMPipeline.from_pretrained`.
        """
        folder = local_folder(name_or_path)

        def taken(config: type) -> dict[str, Any]:
            return {field.name: options.pop(field.name) for field in fields(config) if field.name in options}

        loading, execution = LoadingConfig(**taken(LoadingConfig)), ExecutionConfig(**taken(ExecutionConfig))
        pipe = AIMPipeline.load(folder, device, loading)
        # One spelling on every system, since results name it: a slash at the end makes no other policy.
        settings = {"policy": Path(name_or_path).as_posix(), "policy_sha256": fingerprint(folder)}
        settings |= loading.settings()
        return cls(pipe, settings, replace(pipe.sampling_config, **options), execution)

    @property
    def negative_prompt(self) -> str | None:
        """The negative prompt of its sessions; None without guidance."""
        return self.sampling_config.negative_prompt

    def start(self, instructions: list[str], seeds: list[int]) -> None:
        self._rows = []
        for first in range(0, len(seeds), ROWS):
            of_call = instructions[first : first + ROWS]
            session = self.pipe.start(filled(of_call), negative_prompt=self.negative_prompt)
            for row, seed in enumerate(seeds[first : first + ROWS]):
                self._rows.append(_Row(session.select([row]), torch.Generator().manual_seed(noise_seed("seed", seed))))

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def predict(
        self,
        observations: list[list[Observation]],
        executed_actions: np.ndarray | None = None,
        value_maps: Mapping[str, np.ndarray] | None = None,
        pictures: Pictures = "none",
    ) -> Prediction:
        for index, (row, seen) in enumerate(zip(self._rows, observations, strict=True)):
            row.seen += seen
            if executed_actions is not None:
                row.executed += list(executed_actions[index])
        # Rows of the same form share calls of the network.
        due: dict[tuple, list[int]] = {}
        for index, row in enumerate(self._rows):
            if self._is_due(row):
                due.setdefault((row.session.forms[0], len(row.seen)), []).append(index)
        for rows in due.values():
            for first in range(0, len(rows), ROWS):
                self._plan(rows[first : first + ROWS], value_maps, pictures)

        count = self.actions_per_frame if self.execution_config.is_adaptive else self.n_action_steps
        prediction = Prediction(
            actions=np.stack([row.actions[row.position : row.position + count] for row in self._rows]),
            value_maps=None if pictures == "none" else self._clips("value_maps"),
            frames=self._clips("frames") if pictures == "all" else None,
            planned=np.array([row.position == 0 for row in self._rows]),
        )
        for row in self._rows:
            row.position += count
        return prediction

    def _is_due(self, row: _Row) -> bool:
        """Whether a row plans again."""
        config = self.execution_config
        if row.actions is None or row.position >= self.n_action_steps:
            return True
        if row.position < config.delay:  # the plan that the next one continues is still being computed
            return False
        frame = row.position // self.actions_per_frame  # the next one of the plan
        if config.replan_drift is not None:
            latest = {camera: clip[None, frame - 1 : frame] for camera, clip in row.frames.items()}
            if frame_drift(latest, [row.seen[-1:]])[0, 0] > config.replan_drift:
                return True
        if config.replan_entropy is not None:
            upcoming = {camera: clip[None, frame : frame + 1] for camera, clip in row.value_maps.items()}
            return bool(map_entropy(upcoming)[0, 0] > config.replan_entropy)
        return False

    def _plan(self, rows: list[int], value_maps: Mapping[str, np.ndarray] | None, pictures: Pictures) -> None:
        """Appends the rows' observations and executed actions, and samples a new plan for them, in one call of the
        network."""
        of_call = [self._rows[row] for row in filled(rows)]
        session = AIMSession.stack([row.session for row in of_call])
        is_first = of_call[0].actions is None
        executed = None if is_first else np.stack([row.executed for row in of_call])
        self.pipe.append(session, [row.seen for row in of_call], executed)
        config, meanwhile = self.execution_config, None
        if config.delay and not is_first:
            meanwhile = np.stack([row.actions[row.position : row.position + config.delay] for row in of_call])
        if config.replan_drift is not None:
            pictures = "all"
        elif config.replan_entropy is not None and pictures == "none":
            pictures = "value_maps"
        generators = [row.generator.clone_state() for row in of_call]
        out = self.pipe(
            session=session,
            value_maps=value_maps and {name: maps[filled(rows)] for name, maps in value_maps.items()},
            committed_actions=meanwhile if config.real_time_chunking else None,
            generator=generators,
            output_type="latent" if pictures == "none" else "np",
            decode_frames=pictures == "all",
            sampling_config=self.sampling_config,
        )
        actions = np.asarray(out.actions)
        if out.lookahead_actions is not None:
            actions = np.concatenate([actions, np.asarray(out.lookahead_actions)], axis=1)
        if meanwhile is not None:
            actions[:, : config.delay] = meanwhile
        for index, row in enumerate(of_call[: len(rows)]):
            row.session, row.generator = session.select([index]), generators[index]
            row.seen, row.executed, row.actions, row.position = [], [], actions[index], 0
            row.value_maps = None if pictures == "none" else _of_row(out.value_maps, index)
            row.frames = _of_row(out.frames, index) if pictures == "all" else None

    def _clips(self, name: str) -> dict[str, np.ndarray]:
        """Frames of each row's plan from its position on, camera -> (B, F, ...); the last frame repeats."""
        clips: dict[str, list[np.ndarray]] = {}
        for row in self._rows:
            for camera, clip in getattr(row, name).items():
                ahead = np.arange(len(clip)) + row.position // self.actions_per_frame
                clips.setdefault(camera, []).append(clip[ahead.clip(max=len(clip) - 1)])
        return {camera: np.stack(of_rows) for camera, of_rows in clips.items()}


def _of_row(clips: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {camera: clip[row] for camera, clip in clips.items()}


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
