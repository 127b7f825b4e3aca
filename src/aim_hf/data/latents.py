"""Episodes as the model trains on them: latents, value latents, actions and text features, computed once.

    folder/processor/            the `AIMProcessor`, with the statistics of these actions
    folder/shard-00000.safetensors
    folder/no_prompt.safetensors the text features of no instruction, for training with dropped ones
    folder/index.json            one entry an episode: shard, name of its tensors, chunks, task, seed, what is missing

Training reads windows of K chunks from it and never runs the VAE or the text encoder. Shards are memory-mapped, so a
window costs no more than its own bytes.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset as HubDataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from ..codec import VideoCodec
from ..configuration_aim import AIMConfig
from ..processing_aim import AIMProcessor
from .episodes import Episode
from .video import decode_video

NO_PROMPT = "no_prompt.safetensors"
STORED_DTYPE = torch.float16  # of latents and text features; they are of order one


def encode_episode(
    episode: Episode,
    codec: VideoCodec,
    processor: AIMProcessor,
    actions_per_latent_frame: int,
    chunk_latent_frames: int,
) -> dict[str, torch.Tensor]:
    """One episode of T actions as K = ceil(T / actions of a chunk) + 1 whole chunks.

    What is missing at the end is standing still: the last frame, value map and action are repeated. A whole chunk of
    it, so that a policy learns to rest once it is done. Views and value maps that the episode lacks are black.

    Returns:
        latents (C, 1 + K*F, h, w), of the RGB frames as one stream; value_latents (C, K*F, h, w), each chunk on its
        own; value_cells (K*F, h, w), the value map's maximum in each latent cell, in [0, 1];
        actions, executed_actions (K*F*n, action_dim), relative (`relative_actions`) but not scaled.
    """
    F_, n = chunk_latent_frames, actions_per_latent_frame
    stride = n // codec.temporal_factor  # control steps between two RGB frames
    steps = len(episode.action)
    chunks = -(-steps // (F_ * n)) + 1
    frames = torch.arange(0, chunks * F_ * n + 1, stride).clamp(max=steps).numpy()

    rgb, value = episode.canvases(processor, frames)
    latents = codec.encode(processor.canvas_to_pixels(rgb[None]))[0]

    value = value[1:]
    clips = processor.canvas_to_pixels(value.reshape(chunks, F_ * codec.temporal_factor, *value.shape[1:]))
    value_latents = codec.encode_value_maps(clips).transpose(0, 1).flatten(1, 2)
    scalar = torch.from_numpy(processor.rgb_to_value(value)).unflatten(0, (chunks * F_, codec.temporal_factor))
    value_cells = F.max_pool2d(scalar.amax(dim=1), codec.spatial_factor)

    def padded(actions):
        relative = processor.relative_actions(torch.from_numpy(actions).double(), _initial_pose(episode))
        last = relative[-1:].expand(chunks * F_ * n - steps, -1)
        return torch.cat([relative, last]).float()

    return {
        "latents": latents.to(STORED_DTYPE),
        "value_latents": value_latents.to(STORED_DTYPE),
        "value_cells": value_cells.to(STORED_DTYPE),
        "actions": padded(episode.expert_action),
        "executed_actions": padded(episode.action),
    }


def _initial_pose(episode: Episode) -> torch.Tensor | None:
    if episode.action_space != "ee":
        return None
    pose = torch.from_numpy(episode.state[0]).double()
    for arm in (0, 8):  # float32 storage leaves a quaternion a hair off unit length
        pose[arm + 3 : arm + 7] /= pose[arm + 3 : arm + 7].norm()
    return pose


def fit_processor(processor: AIMProcessor, dataset: HubDataset) -> AIMProcessor:
    """The processor for a dataset's robot: words and canvas are those of `processor`, action space and the cameras'
    sizes the dataset's. Slots of cameras that no episode has stay empty, so that the robot needs no such camera.

    Raises:
        ValueError: if no camera of the dataset has a slot.
    """
    cameras = {}
    for name, camera in processor.cameras.items():
        rows = np.flatnonzero(_present(dataset, f"rgb_{name}"))
        if len(rows):
            first = dataset[int(rows[0])][f"rgb_{name}"]
            cameras[name] = {"size": list(decode_video(first, [0]).shape[1:3]), "slot": camera["slot"]}
    if not cameras:
        raise ValueError(f"no episode has pictures of {', '.join(processor.cameras)}, the cameras of the processor")
    first = dataset.select_columns(["action_space", "state"])[0]
    return AIMProcessor(
        processor.tokenizer,
        processor.canvas_size,
        cameras,
        action_space=first["action_space"],
        action_dim=len(first["state"][0]),
        minimum_half_range=processor.minimum_half_range,
        max_text_length=processor.max_text_length,
    )


def missing(dataset: HubDataset, processor: AIMProcessor) -> list[dict[str, list[str]]]:
    """Of each episode, the cameras of the processor that it lacks (`missing_views`) and those whose value maps it
    lacks (`missing_maps`); what has no entry is all there."""
    entries = [{} for _ in range(len(dataset))]
    for name, column in (("missing_views", "rgb"), ("missing_maps", "value")):
        for camera in processor.cameras:
            for row in np.flatnonzero(~_present(dataset, f"{column}_{camera}")):
                entries[row].setdefault(name, []).append(camera)
    return entries


def _present(dataset: HubDataset, column: str) -> np.ndarray:
    """Which rows hold something, (len(dataset),) bool; no video is read."""
    return dataset.data.column(column).is_valid().to_numpy()


@dataclass(frozen=True)
class LatentShard:
    """One file of a latents folder.

    path: the file. episodes: suite, task, split, seed and instruction of each episode in it, and what it lacks
    (`missing`). encoder: `fingerprint` of the VAE and text encoder that made it.
    """

    path: Path
    episodes: list[dict]
    encoder: str

    def is_done(self) -> bool:
        """Whether the file is there, whole, and holds just these episodes, from this encoder."""
        if not self.path.is_file():
            return False
        try:
            with safe_open(self.path, framework="pt") as file:
                return file.metadata() == self._metadata()
        except SafetensorError:
            return False

    def write(self, encoded: Iterable[dict[str, torch.Tensor]]) -> None:
        """Writes the episodes' tensors, whole or not at all."""
        tensors = {}
        for index, episode in enumerate(encoded):
            tensors |= {f"{index}.{name}": tensor.contiguous() for name, tensor in episode.items()}
        temporary = self.path.with_name(f".{self.path.name}")
        save_file(tensors, temporary, metadata=self._metadata())
        os.replace(temporary, self.path)

    def entries(self, chunk_latent_frames: int) -> Iterator[tuple[dict, torch.Tensor]]:
        """Each episode's entry in the index, and its actions."""
        with safe_open(self.path, framework="pt") as file:
            for index, episode in enumerate(self.episodes):
                frames = file.get_slice(f"{index}.value_latents").get_shape()[1]
                entry = {
                    **episode,
                    "chunks": frames // chunk_latent_frames,
                    "shard": self.path.name,
                    "key": str(index),
                }
                yield entry, file.get_tensor(f"{index}.actions")

    def _metadata(self) -> dict[str, str]:
        # One entry: safetensors writes several in any order, and equal shards shall be equal files.
        return {"made_of": json.dumps({"encoder": self.encoder, "episodes": self.episodes})}


def plan_shards(folder: Path, episodes: list[dict], encoder: str, shard_size: int) -> list[LatentShard]:
    """The files that hold `episodes`, `shard_size` in each."""
    return [
        LatentShard(folder / f"shard-{index:05d}.safetensors", episodes[first : first + shard_size], encoder)
        for index, first in enumerate(range(0, len(episodes), shard_size))
    ]


def write_index(
    folder: Path,
    shards: list[LatentShard],
    processor: AIMProcessor,
    chunk_latent_frames: int,
    no_prompt_embeds: torch.Tensor,
) -> None:
    """Finishes a folder whose shards are all there: writes the processor with the statistics of their actions, and at
    last the index. A folder without an index was not finished.
    """
    listed = [item for shard in shards for item in shard.entries(chunk_latent_frames)]
    processor.action_statistics = processor.compute_action_statistics(torch.cat([actions for _, actions in listed]))
    processor.save_pretrained(folder / "processor")
    save_file({"prompt_embeds": no_prompt_embeds.contiguous()}, folder / NO_PROMPT)
    temporary = folder / ".index.json"
    temporary.write_text(json.dumps([entry for entry, _ in listed], indent=1))
    os.replace(temporary, folder / "index.json")


class LatentWindows(Dataset):
    """Windows of `window_chunks` chunks from a latents folder, one item for each place where a window fits.

    Args:
        folder: made by `dataset_scripts/encode_latents.py`.
        config: of the model, which says how many latent frames and actions a chunk has, and the lookahead.
        window_chunks: K.
        held_out: this many episodes, evenly spread over the index, are left out ...
        only_held_out: ... or are the only ones.
        first_only: only the window at each episode's start.

    An item holds the arguments of [`AIMForWorldAction.forward`]; `value_weights` are the value map's cells. Where some
    episode lacks a view or a value map, there are also `rgb_weights` and `value_mask` (K*F, h, w): 0 in the cells of
    what is missing, 1 elsewhere.

    Raises:
        FileNotFoundError: if the folder holds no index.
        ValueError: if a shard is damaged, or no window fits.
    """

    def __init__(
        self,
        folder: str | Path,
        config: AIMConfig,
        window_chunks: int,
        held_out: int = 0,
        only_held_out: bool = False,
        first_only: bool = False,
    ):
        self.folder = Path(folder)
        if not (self.folder / "index.json").is_file():
            raise FileNotFoundError(
                f"{self.folder} has no index.json: it holds no latents, or their encoding was not finished. Run "
                "dataset_scripts/encode_latents.py."
            )
        self.processor = AIMProcessor.from_pretrained(self.folder / "processor")
        self.config, self.window_chunks = config, window_chunks
        entries = json.loads((self.folder / "index.json").read_text())
        if held_out >= len(entries):
            raise ValueError(f"held_out is {held_out}; {self.folder} has only {len(entries)} episodes.")
        out = {i * len(entries) // held_out for i in range(held_out)}
        self.entries = [entry for i, entry in enumerate(entries) if (i in out) == only_held_out]
        self._shards = {}
        for name in {entry["shard"] for entry in self.entries}:
            try:
                self._shards[name] = safe_open(self.folder / name, framework="pt")
            except Exception as error:
                raise ValueError(f"{self.folder / name} is damaged ({error}); encode the latents again.") from error
        self._incomplete = any({"missing_views", "missing_maps"} & set(entry) for entry in entries)
        self._places = []
        for index, entry in enumerate(self.entries):
            last = 0 if first_only else entry["chunks"] - window_chunks
            self._places += [(index, start) for start in range(last + 1)]
        if not self._places:
            raise ValueError(f"no episode of {self.folder} has {window_chunks} chunks; take a smaller window_chunks.")

    def __len__(self) -> int:
        return len(self._places)

    def no_prompt_embeds(self) -> torch.Tensor:
        """The text features of no instruction, (max_text_length, text_dim).

        Raises:
            FileNotFoundError: if the folder was made by a version that didn't store them.
        """
        if not (self.folder / NO_PROMPT).is_file():
            raise FileNotFoundError(f"{self.folder} has no {NO_PROMPT}; encode the latents again.")
        return self._padded(load_file(self.folder / NO_PROMPT)["prompt_embeds"].float())

    def _padded(self, text: torch.Tensor) -> torch.Tensor:
        # Stored without its padding; zeros up to the full length are part of what Wan's cross-attention reads.
        return F.pad(text, (0, 0, 0, self.processor.max_text_length - len(text)))

    def _cells(self, camera: str, height: int, width: int) -> tuple[slice, slice]:
        """The cells of a canvas of so many that show something of a camera."""
        slot, spans = self.processor.cameras[camera]["slot"], []
        for axis, cells in enumerate((height, width)):
            pixels = self.processor.canvas_size[axis] // cells
            spans.append(slice(slot[axis] // pixels, -(-(slot[axis] + slot[2 + axis]) // pixels)))
        return tuple(spans)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        index, start = self._places[item]
        entry = self.entries[index]
        shard, key = self._shards[entry["shard"]], entry["key"]
        first = start * self.config.chunk_latent_frames
        last = first + min(self.window_chunks, entry["chunks"] - start) * self.config.chunk_latent_frames
        n = self.config.actions_per_latent_frame

        def read(name, axis, begin, end):
            stored = shard.get_slice(f"{key}.{name}")
            return (stored[begin:end] if axis == 0 else stored[:, begin:end]).float()

        def scaled(name, lookahead_frames=0):
            actions = read(name, 0, first * n, (last + lookahead_frames) * n)
            missing = (last + lookahead_frames - first) * n - len(actions)  # the episode has ended, standing still
            return self.processor.scale_actions(torch.cat([actions, actions[-1:].expand(missing, -1)]))

        latents = read("latents", 1, first, last + 1)

        def known(missing):
            cameras, shape = entry.get(missing, []), latents.shape[2:]
            if len(cameras) == len(self.processor.cameras):  # nothing at all is known, beside the slots neither
                return torch.zeros(last - first, *shape)
            weights = torch.ones(last - first, *shape)
            for camera in cameras:
                weights[:, *self._cells(camera, *shape)] = 0
            return weights

        masks = {}
        if self._incomplete:
            masks = {"rgb_weights": known("missing_views"), "value_mask": known("missing_maps")}
        return masks | {
            "latents": latents,
            "value_latents": read("value_latents", 1, first, last),
            "value_weights": read("value_cells", 0, first, last),
            "actions": scaled("actions", self.config.action_lookahead_frames),
            "executed_actions": scaled("executed_actions"),
            "prompt_embeds": self._padded(shard.get_tensor(f"{key}.prompt_embeds").float()),
        }
