"""Cameras, actions and training windows of a policy, read from a LeRobot dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_PREFIX, OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch import Tensor

from aim_hf import AIMConfig, AIMPipeline, AIMProcessor
from aim_hf.data.latents import camera_cells, check_instructions, encode_value_maps, unit_pose
from aim_hf.data.lerobot.format import EXPERT_ACTION, OURS
from aim_hf.data.lerobot.robot import check_absolute as check_spans
from aim_hf.model.actions import EE_ACTION_DIM

from .configuration_aim import VALUE_MAP, AIMPolicyConfig

if TYPE_CHECKING:  # a robot needs no datasets
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

# Statistics of relative actions hold each action of so many predictions: 224 MB for 40 actions of 14 numbers.
PREDICTIONS = 50_000


def fitted_processor(
    processor: AIMProcessor, config: AIMPolicyConfig, dataset: LeRobotDatasetMetadata
) -> AIMProcessor:
    """The processor for a dataset's robot: tokenizer and canvas of `processor`; cameras, actions, their statistics and
    the control rate of the dataset.

    Raises:
        ValueError: for cameras without a slot, for relative actions in `ee`, and as `check_instructions` and
            `action_statistics`.
    """
    cameras = {
        camera: {"size": list(config.image_features[feature].shape[1:]), "slot": processor.cameras[camera]["slot"]}
        for camera, feature in config.camera_features(processor).items()
    }
    (action_dim,) = config.action_feature.shape
    fitted = AIMProcessor(
        processor.tokenizer,
        processor.canvas_size,
        cameras,
        action_space="ee" if (processor.action_space, action_dim) == ("ee", EE_ACTION_DIM) else "qpos",
        action_dim=action_dim,
        minimum_half_range=processor.minimum_half_range,
        max_text_length=processor.max_text_length,
        fps=dataset.fps,
    )
    if config.use_relative_actions and fitted.action_space == "ee":
        raise ValueError(
            "use_relative_actions is True, and actions of space 'ee' are relative to the episode's first pose "
            "already; leave the option out."
        )
    check_instructions(fitted, [task for task in ([] if dataset.tasks is None else dataset.tasks.index) if task])
    fitted.action_statistics = action_statistics(fitted, config, dataset)
    return fitted


def check_pictures(processor: AIMProcessor, config: AIMPolicyConfig, dataset: LeRobotDatasetMetadata) -> None:
    """Raises ValueError if a dataset has too few cameras for a saved policy, or pictures of another size."""
    there, cameras = dataset_to_policy_features(dataset.features), config.camera_features(processor)
    pictures = [name for name in dataset.camera_keys if not name.startswith(VALUE_MAP)]
    missing = [feature for feature in cameras.values() if feature not in pictures]
    # LeRobot may rename the others to the missing ones.
    if len(pictures) < len(cameras):
        raise ValueError(
            f"{dataset.repo_id} has no {', '.join(missing)}, which this policy looks at; its pictures are "
            f"{', '.join(pictures) or 'none'}. Train another policy, with --policy.type=aim and "
            "--policy.base_model_id."
        )
    for camera, feature in cameras.items():
        size = processor.cameras[camera]["size"]
        if feature in there and list(there[feature].shape[1:]) != size:
            raise ValueError(
                f"{feature} of {dataset.repo_id} is {there[feature].shape[1:]} (height, width), and {size} in this "
                "policy; train another one, with --policy.type=aim and --policy.base_model_id."
            )


def action_statistics(
    processor: AIMProcessor, config: AIMPolicyConfig, dataset: LeRobotDatasetMetadata
) -> dict[str, list[float]]:
    """Statistics of the expert's actions as the network sees them; those that LeRobot stores are averages over
    episodes.

    Raises:
        ValueError: if the dataset has no actions, if some of its numbers aren't finite, or if its actions are
            differences from step to step.
    """
    numbers = read_numbers(dataset)
    check_finite(dataset, numbers, processor.action_space == "ee" or config.use_relative_actions)
    check_absolute(dataset.repo_id, numbers[ACTION], numbers.get(OBS_STATE))
    actions, poses = torch.tensor(numbers.get(EXPERT_ACTION, numbers[ACTION]), dtype=torch.float64), None
    if config.use_relative_actions:
        horizon = config.chunk_size + config.lookahead_steps
        return processor.compute_action_statistics(
            relative_to_states(
                actions, masked_states(dataset, numbers, config), numbers["episode_index"][:, 0], horizon
            )
        )
    if processor.action_space == "ee":
        of_episode = first_poses(numbers)
        poses = torch.stack([of_episode[index] for index in numbers["episode_index"][:, 0].tolist()])
    return processor.compute_action_statistics(processor.relative_actions(actions[:, None], poses)[:, 0])


def masked_states(dataset: LeRobotDatasetMetadata, numbers: dict[str, np.ndarray], config: AIMPolicyConfig) -> Tensor:
    """The state of each frame, (N, action_dim), with 0 for numbers whose actions stay absolute. Raises ValueError
    unless states have as many numbers as actions."""
    width, there = numbers[ACTION].shape[1], numbers[OBS_STATE].shape[1] if OBS_STATE in numbers else "no"
    if there != width:
        raise ValueError(
            f"{OBS_STATE} of {dataset.repo_id} has {there} numbers, and {ACTION} {width}; relative actions need "
            "equally many. Leave use_relative_actions out."
        )
    return torch.tensor(numbers[OBS_STATE], dtype=torch.float64) * torch.tensor(config.relative_mask)


def relative_to_states(actions: Tensor, states: Tensor, episodes: np.ndarray, horizon: int) -> Tensor:
    """The actions (N, action_dim) of all predictions of `horizon` actions, relative to the state at which each begins:
    one from each frame, without the actions beyond its episode. With more than `PREDICTIONS` frames, it is one from
    every second frame, or fewer."""
    starts = torch.arange(0, len(actions), -(-len(actions) // PREDICTIONS))
    episodes, parts = torch.tensor(episodes), []
    for ahead in range(horizon):
        inside = starts[starts + ahead < len(actions)]
        inside = inside[episodes[inside] == episodes[inside + ahead]]
        parts.append(actions[inside + ahead] - states[inside])
    return torch.cat(parts)


def check_finite(dataset: LeRobotDatasetMetadata, numbers: dict[str, np.ndarray], with_states: bool) -> None:
    """Raises ValueError, with the feature and the episode, for actions of a dataset that are NaN or infinite, and for
    such states if training needs them."""
    for feature in (ACTION, EXPERT_ACTION, *[OBS_STATE] * with_states):
        broken = ~np.isfinite(numbers.get(feature, np.zeros((0, 1)))).all(axis=1)
        if broken.any():
            raise ValueError(
                f"{feature} of {dataset.repo_id} is NaN or infinite in {broken.sum()} frames, first in episode "
                f"{numbers['episode_index'][broken.argmax(), 0]}; repair them, or delete these episodes with "
                "lerobot-edit-dataset --operation.type=delete_episodes."
            )


def check_absolute(name: str, actions: np.ndarray, states: np.ndarray | None) -> None:
    """Raises ValueError if the actions (N, D) of a dataset are differences from step to step. It compares the spans of
    actions and states, if these have the same width."""
    if states is None or states.shape != actions.shape:
        return
    action_span, state_span = (np.subtract(*np.quantile(of, [0.99, 0.01], axis=0)) for of in (actions, states))
    check_spans(name, action_span, state_span)


def read_numbers(dataset: LeRobotDatasetMetadata) -> dict[str, np.ndarray]:
    """Actions, those of the expert and states if there are any, and `index`, episode and frame index of all frames,
    (N, width) each. Of a dataset of the Hub, LeRobot downloads only the files of the episodes to train on.

    Raises:
        ValueError: if the dataset has no actions on this machine.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = (ACTION, EXPERT_ACTION, OBS_STATE, "index", "episode_index", "frame_index")
    names = [name for name in wanted if name in dataset.features]
    paths = sorted((dataset.root / "data").glob("*/*.parquet"))
    if ACTION not in names or not paths:
        raise ValueError(
            f"{dataset.repo_id} has no actions in {dataset.root / 'data'}, whose statistics AIM needs; download the "
            "whole dataset, without --dataset.streaming."
        )
    table = pa.concat_tables([pq.read_table(path, columns=names, partitioning=None) for path in paths])

    def numbers(name: str) -> np.ndarray:
        column = table[name].combine_chunks()
        values = column.flatten() if pa.types.is_nested(column.type) else column
        return values.to_numpy(zero_copy_only=False).reshape(len(table), -1)

    return {name: numbers(name) for name in names}


def first_poses(numbers: dict[str, np.ndarray]) -> dict[int, Tensor]:
    """Episode -> the pose (16,) that its actions are relative to in space `ee`. Raises ValueError if states are no
    poses."""
    there = numbers[OBS_STATE].shape[1] if OBS_STATE in numbers else "no"
    if there != EE_ACTION_DIM:
        raise ValueError(
            f"{OBS_STATE} has {there} numbers; expected {EE_ACTION_DIM}, the poses of both arms, which actions of "
            "space 'ee' are taken relative to. Store these, or give a base that acts in 'qpos'."
        )
    first = numbers["frame_index"][:, 0] == 0
    episodes = numbers["episode_index"][first, 0].tolist()
    return {episode: unit_pose(np.array(state)) for episode, state in zip(episodes, numbers[OBS_STATE][first])}


class Demonstrations:
    """Actions and poses of a dataset's windows. LeRobot's batches hold `action` alone, and relative to the first state
    of a window, where each chunk of AIM's is relative to its own.

    A collection of this project has `expert_action`, the actions without noise and mistakes, which are imitated.
    `action` is what was executed, and what the history shows. `meta/aim.parquet` names the step at which the expert
    sees a mistake; a prediction from before that step can't foresee the recovery.

    Args:
        config: of the policy; tells whether actions are relative to states.
        action_space: of the policy; in `ee` actions are relative to an episode's first pose.

    Raises:
        ValueError: if `meta/aim.parquet` is that of other episodes.
    """

    def __init__(self, dataset: LeRobotDatasetMetadata, config: AIMPolicyConfig, action_space: str) -> None:
        numbers = read_numbers(dataset)

        def by_index(values: Tensor) -> Tensor:
            """The values in the order of LeRobot's `index`; NaN for frames whose file isn't on this machine."""
            ordered = torch.full((dataset.total_frames, values.shape[1]), torch.nan, dtype=torch.float64)
            ordered[torch.tensor(numbers["index"][:, 0])] = values.double()
            return ordered

        self._executed = by_index(torch.tensor(numbers[ACTION]))
        self._states = by_index(masked_states(dataset, numbers, config)) if config.use_relative_actions else None
        self._every = config.actions_per_frame
        self._first_poses = first_poses(numbers) if action_space == "ee" else None
        expert = numbers.get(EXPERT_ACTION)
        self._expert = None if expert is None else by_index(torch.tensor(expert))
        self._interventions = None if expert is None else interventions(dataset)

    def first_poses(self, batch: dict[str, Any]) -> Tensor | None:
        """The first pose of each window's episode, (B, 16); None in action space `qpos`."""
        if self._first_poses is None:
            return None
        return torch.stack([self._first_poses[index] for index in batch["episode_index"].tolist()])

    def targets(self, batch: dict[str, Any], config: AIMConfig) -> Tensor:
        """The actions to imitate, (B, T, action_dim), of the frames of `action`. Beyond the end of an episode the last
        one repeats. Relative ones are those of each prediction, (B, K*P, action_dim)."""
        actions = self._executed if self._expert is None else self._expert
        if self._states is None:
            return actions[self._frames(batch)]
        return self._relative(actions, batch, config.actions_per_chunk, config.action_horizon)

    def executed(self, batch: dict[str, Any], config: AIMConfig) -> Tensor:
        """The actions of the history, (B, K*F*n, action_dim)."""
        ahead = config.action_lookahead_frames * config.actions_per_latent_frame
        count = batch["action_is_pad"].shape[1] - ahead
        if self._states is None:
            return self._executed[self._frames(batch)[:, :count]]
        return self._relative(self._executed, batch, self._every, self._every)[:, :count]

    def _frames(self, batch: dict[str, Any]) -> Tensor:
        """LeRobot's `index` of each action of the windows, (B, T)."""
        padded = batch["action_is_pad"].cpu()
        steps = torch.arange(padded.shape[1]).minimum((~padded).sum(dim=1, keepdim=True) - 1)
        return batch["index"].cpu()[:, None] + steps

    def _relative(self, actions: Tensor, batch: dict[str, Any], step: int, count: int) -> Tensor:
        """`count` actions from each `step`-th frame of the windows on, relative to that frame's state: (B, T',
        action_dim)."""
        frames = self._frames(batch)
        parts = actions[frames].unfold(1, count, step)  # (B, M, action_dim, count)
        states = self._states[frames[:, ::step]][:, : parts.shape[1], :, None]
        return (parts - states).movedim(-1, 2).flatten(1, 2)

    def foreseen(self, batch: dict[str, Any], config: AIMConfig) -> Tensor | None:
        """0 for predicted actions of a recovery whose mistake is still to come, 1 elsewhere: (B, K*P), with the P
        actions of each of K predictions; None for a dataset without mistakes."""
        if self._interventions is None:
            return None
        chunk = config.actions_per_chunk
        in_chunks = batch[ACTION].shape[1] - config.action_lookahead_frames * config.actions_per_latent_frame
        begins = batch["index"].cpu()[:, None] + torch.arange(0, in_chunks, chunk)  # (B, K)
        steps = begins[..., None] + torch.arange(config.action_horizon)  # (B, K, P)
        intervention = self._interventions[batch["episode_index"].cpu()][:, None, None]
        return ((steps < intervention) | (begins[..., None] >= intervention)).flatten(1).float()


def interventions(dataset: LeRobotDatasetMetadata) -> Tensor | None:
    """LeRobot's `index` of each episode's first action after a mistake, or of the dataset's end; None for a dataset
    without mistakes.

    Raises:
        ValueError: if `meta/aim.parquet` is that of other episodes.
    """
    import pyarrow.parquet as pq

    path = dataset.root / OURS
    if not path.is_file() or "intervention" not in pq.read_schema(path).names:  # exported before there were mistakes
        return None
    steps = pq.read_table(path, columns=["intervention"])["intervention"].to_pylist()
    if len(steps) != dataset.total_episodes:
        raise ValueError(
            f"{path} has {len(steps)} episodes, and the dataset {dataset.total_episodes}; delete the file, or export "
            "the dataset again."
        )
    if all(step is None for step in steps):
        return None
    firsts = dataset.episodes["dataset_from_index"]
    end = dataset.total_frames
    return torch.tensor([end if step is None else first + step for first, step in zip(firsts, steps)])


def as_pictures(batch: dict[str, Any], feature: str, rows: int) -> np.ndarray:
    """Pictures (B, ..., H, W, 3) uint8 of a feature (B, ..., 3, H, W) in [0, 1].

    Raises:
        ValueError: if the batch lacks the feature, has another number of rows, or numbers of another range.
    """
    if feature not in batch:
        there = ", ".join(name for name in batch if name.startswith("observation.image"))
        raise ValueError(
            f"the batch has no {feature}, which this policy looks at; its pictures are {there or 'none'}. Rename "
            "these with --rename_map, or train another policy."
        )
    pictures = batch[feature]
    if len(pictures) != rows:
        raise ValueError(f"{feature} has {len(pictures)} rows; expected {rows}. Call reset() before other episodes.")
    # Augmentations may leave [0, 1] a little; 0 to 255 and normalized pictures would be white or black in silence.
    if not pictures.is_floating_point() or not ((pictures > -0.5) & (pictures < 1.5)).all():
        raise ValueError(
            f"{feature} is {pictures.dtype}, {pictures.min():g} to {pictures.max():g}; expected floating-point "
            "numbers from 0 to 1, as LeRobot's datasets have them."
        )
    return (pictures.float() * 255).round().clamp(0, 255).byte().movedim(-3, -1).cpu().numpy()


def map_features(cameras: dict[str, str]) -> dict[str, str]:
    """AIM's camera -> the feature that holds its value maps, if the data have any."""
    return {camera: VALUE_MAP + feature.removeprefix(f"{OBS_IMAGES}.") for camera, feature in cameras.items()}


def check_maps(batch: dict[str, Any]) -> None:
    """Raises ValueError for value maps that are named after no picture of a batch: their loss would be masked."""
    maps = {name for name in batch if name.startswith(VALUE_MAP) and not name.endswith("_is_pad")}
    if unknown := sorted(maps - set(map_features({name: name for name in batch}).values())):
        raise ValueError(
            f"{', '.join(unknown)}: there is no picture of that name, without value_. Rename maps as their cameras, "
            "with --rename_map, or remove them with lerobot-edit-dataset --operation.type=remove_feature."
        )


@torch.no_grad()
def encode_pictures(batch: dict[str, Any], pipeline: AIMPipeline, cameras: dict[str, str]) -> dict[str, Tensor]:
    """RGB and value latents of the windows of a batch.

    Args:
        batch: pictures, as in `training_window`. Missing value maps are black.

    Returns:
        latents (B, C, 1 + K*F, h, w); value_latents (B, C, K*F, h, w); value_cells (B, K*F, h, w), the maximum of the
        value map in each latent cell, in [0, 1].
    """
    processor, codec = pipeline.processor, pipeline.codec
    rows = len(batch[next(iter(cameras.values()))])
    views = {camera: as_pictures(batch, feature, rows) for camera, feature in cameras.items()}
    maps = {camera: np.zeros_like(view) for camera, view in views.items()}
    maps |= {camera: as_pictures(batch, name, rows) for camera, name in map_features(cameras).items() if name in batch}
    canvases = processor.pack_canvas({camera: clip[:, 1:] for camera, clip in maps.items()})
    value_latents, value_cells = encode_value_maps(
        codec, processor, canvases, pipeline.model.config.chunk_latent_frames
    )
    return {
        "latents": codec.encode(processor.canvas_to_pixels(processor.pack_canvas(views))),
        "value_latents": value_latents,
        "value_cells": value_cells,
    }


def training_window(
    batch: dict[str, Any],
    pipeline: AIMPipeline,
    cameras: dict[str, str],
    encode: Callable[[dict[str, Any]], dict[str, Tensor]],
    targets: Tensor,
    executed: Tensor,
    initial_pose: Tensor | None,
) -> dict[str, Tensor]:
    """Arguments of `FlowMatchingLoss` but the instruction, before `weigh_values`.

    Frames and actions beyond the end of an episode, which LeRobot repeats, have no loss. Nor have the value maps of
    cameras for which the dataset has none, `observation.images.value_<camera>`.

    Args:
        batch: pictures (B, 1 + K*F * temporal factor, 3, H, W) in [0, 1], and LeRobot's masks of these and of the
            (K*F + A)*n actions.
        cameras: AIM's camera -> feature.
        encode: batch -> latents, as `encode_pictures`.
        targets, executed: of [`Demonstrations`].
        initial_pose: (B, 16), first poses of the episodes in action space `ee`; None in `qpos`.

    Raises:
        ValueError: for value maps of no camera, and as `as_pictures`.
    """
    processor = pipeline.processor
    check_maps(batch)
    encoded = encode(batch)
    frames, *size = encoded["value_latents"].shape[2:]

    # All observations have the same mask, whose name is the dataset's even where LeRobot renames the observation.
    mask = next(name for name in batch if name.startswith(OBS_PREFIX) and name.endswith("_is_pad"))
    padded = batch[mask][:, 1:].unflatten(1, (frames, pipeline.codec.temporal_factor))
    inside = (~padded.any(dim=2)).float()[..., None, None].expand(-1, -1, *size)
    value_mask, features = inside.clone(), map_features(cameras)
    for camera, name in features.items():
        if name not in batch:
            value_mask[..., *camera_cells(processor, camera, *size)] = 0
    if not any(name in batch for name in features.values()):
        value_mask = torch.zeros_like(inside)  # without any map, the cells outside the slots are unknown, too

    def scaled(actions: Tensor) -> Tensor:
        return processor.scale_actions(processor.relative_actions(actions.cpu().double(), initial_pose)).float()

    window = {
        "latents": encoded["latents"],
        "value_latents": encoded["value_latents"],
        "value_cells": encoded["value_cells"],
        "value_mask": value_mask,
        "rgb_weights": inside,
        "actions": scaled(targets),
        "executed_actions": scaled(executed),
        "action_mask": (~batch["action_is_pad"]).float(),
    }
    return {name: tensor.to(pipeline.model.device) for name, tensor in window.items()}
