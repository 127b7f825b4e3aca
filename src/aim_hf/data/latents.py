"""Episodes as the model trains on them: latents, value latents, actions and text features, computed once.

    folder/made_from.json        what they were encoded with, `made_from`
    folder/processor/            the `AIMProcessor`, with the statistics of these actions
    folder/shard-00000.safetensors
    folder/no_prompt.safetensors the text features of no instruction, for training with dropped ones
    folder/index.json            `made_from`, and an entry for each of the `episodes`: shard, name of its tensors,
                                 chunks, task, seed, digest of its row, what is missing

Training reads windows of K chunks from it and never runs the VAE or the text encoder. Shards are memory-mapped, so a
window costs no more than its own bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from ..model.configuration_aim import AIMConfig
from ..model.processing_aim import AIMProcessor
from ..pipeline.codec import VideoCodec
from ..utils.checks import check_whole
from ..utils.files import UnreadableFile, claim, read_json, reading, write_text, written_file

if TYPE_CHECKING:  # training from latents needs neither
    from datasets import Dataset as HubDataset

    from .episodes import Episode

INDEX, NO_PROMPT = "index.json", "no_prompt.safetensors"
MEND = "run `aim-hf encode-latents`: there are no latents, or not all of them, or those of an older version"
NOT_FINITE = "delete it and run `aim-hf encode-latents` again, which makes what is missing"
STORED_DTYPE = torch.float16  # of latents and text features; they are of order one
# Fields of the model's config that the latents must have been made for.
GEOMETRY = ("chunk_latent_frames", "actions_per_latent_frame", "in_channels", "text_dim", "action_dim")
DESCRIPTION = ("suite", "task", "split", "seed", "instruction")
HELD_OUT_SHARE, HELD_OUT_MOST = 20, 48  # one in 20, and no more than so many


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

    Raises:
        ValueError: for an episode without actions, or actions of a latent frame that don't divide into its frames.
    """
    F_, n = chunk_latent_frames, actions_per_latent_frame
    if n % codec.temporal_factor:
        raise ValueError(
            f"actions_per_latent_frame is {n}; expected a multiple of {codec.temporal_factor}, the RGB frames of a "
            "latent frame."
        )
    stride = n // codec.temporal_factor  # control steps between two RGB frames
    steps = len(episode.action)
    if not steps:
        raise ValueError(f"{episode.task} seed {episode.seed} has one frame and no action; leave this episode out.")
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
    """The processor for a dataset's robot: words and canvas are those of `processor`; action space, control rate and
    the cameras' sizes the dataset's. Slots of cameras that no episode has stay empty, so that the robot needs no such
    camera.

    Raises:
        ValueError: if no camera of the dataset has a slot.
    """
    from .video import decode_video

    cameras = {}
    for name, camera in processor.cameras.items():
        rows = np.flatnonzero(_present(dataset, f"rgb_{name}"))
        if len(rows):
            first = dataset[int(rows[0])][f"rgb_{name}"]
            cameras[name] = {"size": list(decode_video(first, [0]).shape[1:3]), "slot": camera["slot"]}
    if not cameras:
        raise ValueError(f"no episode has pictures of {', '.join(processor.cameras)}, the cameras of the processor")
    first = dataset.select_columns(["action_space", "state", "fps"])[0]
    return AIMProcessor(
        processor.tokenizer,
        processor.canvas_size,
        cameras,
        action_space=first["action_space"],
        action_dim=len(first["state"][0]),
        minimum_half_range=processor.minimum_half_range,
        max_text_length=processor.max_text_length,
        fps=first["fps"],
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


def described(dataset: HubDataset, processor: AIMProcessor) -> list[dict]:
    """Each episode's entry in the index: what it is, what it lacks, and `row`, the digest of all that it holds."""
    entries = zip(dataset.select_columns(list(DESCRIPTION)).to_list(), missing(dataset, processor), strict=True)
    return [entry | lacks | {"row": digest} for (entry, lacks), digest in zip(entries, row_digests(dataset))]


def row_digests(dataset: HubDataset) -> Iterator[str]:
    """SHA-256 of each row with its videos: the same for the same episode, whatever lies beside it."""
    tables = dataset.with_format("arrow")
    for index in range(len(dataset)):
        # Taken, and not only sliced: then its buffers hold nothing of other rows.
        row = tables[index : index + 1].take([0]).combine_chunks()
        digest = hashlib.sha256()
        for name in row.column_names:
            digest.update(name.encode())
            for buffer in row[name].chunk(0).buffers():
                digest.update(buffer or b"")
        yield digest.hexdigest()


def _present(dataset: HubDataset, column: str) -> np.ndarray:
    """Which rows hold something, (len(dataset),) bool; no video is read."""
    return dataset.data.column(column).is_valid().to_numpy()


def made_from(
    config: AIMConfig,
    processor: AIMProcessor,
    codec: VideoCodec,
    text_encoder: str,
    text_dim: int,
    fps: float,
    shard_size: int,
) -> dict[str, Any]:
    """All that latents depend on beside the episodes: what made them, and the geometry that they have.

    Args:
        config: says how many latent frames and actions a chunk has.
        text_encoder: its `fingerprint`. text_dim: width of its features.
        fps: control steps a second. shard_size: episodes of a file.
    """
    fields = ("canvas_size", "cameras", "action_space", "action_dim", "max_text_length")
    vocabulary = json.dumps(sorted(processor.tokenizer.get_vocab().items()))
    return {
        "video_encoder": encoder_fingerprint(codec),
        "text_encoder": text_encoder,
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "chunk_latent_frames": config.chunk_latent_frames,
        "actions_per_latent_frame": config.actions_per_latent_frame,
        "in_channels": codec.vae.config.z_dim,
        "latent_size": [size // codec.spatial_factor for size in processor.canvas_size],
        "text_dim": text_dim,
        "fps": fps,
        "shard_size": shard_size,
        **{name: getattr(processor, name) for name in fields},
    }


def encoder_fingerprint(codec: VideoCodec) -> str:
    """SHA-256 of what makes latents: the decoder may be trained on meanwhile."""
    vae, digest = codec.vae, hashlib.sha256()
    for part in (vae.encoder, vae.quant_conv):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    digest.update(json.dumps([vae.config.latents_mean, vae.config.latents_std]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class LatentShard:
    """One file of a latents folder. episodes: of `described`, those that it holds. made_from: see there."""

    path: Path
    episodes: list[dict]
    made_from: dict[str, Any]

    def unfinished(self) -> str | None:
        """Why it has to be written; None if it is there, whole, and holds just these episodes."""
        if not self.path.is_file():
            return "not there yet"
        try:
            with safe_open(self.path, framework="pt") as file:
                return None if file.metadata() == self._metadata() else "made from other episodes"
        except SafetensorError:
            return "damaged"

    def write(self, encoded: Iterable[dict[str, torch.Tensor]]) -> None:
        """Writes the episodes' tensors, whole or not at all.

        Raises:
            OSError: if the file can't be written.
            ValueError: for values that aren't finite; names their episode.
        """
        tensors = {}
        for index, episode in enumerate(encoded):
            if broken := [name for name, tensor in episode.items() if not tensor.isfinite().all()]:
                raise ValueError(
                    f"{', '.join(broken)} of {self.episodes[index]} have values that aren't finite in "
                    f"{STORED_DTYPE}; expected none. Look at the checkpoint's codec and text encoder, or leave this "
                    "episode out."
                )
            tensors |= {f"{index}.{name}": tensor.contiguous() for name, tensor in episode.items()}
        with written_file(self.path) as temporary:
            save_file(tensors, temporary, metadata=self._metadata())

    def entries(self) -> Iterator[tuple[dict, torch.Tensor]]:
        """Each episode's entry in the index, and its actions."""
        with safe_open(self.path, framework="pt") as file:
            for index, episode in enumerate(self.episodes):
                frames = file.get_slice(f"{index}.value_latents").get_shape()[1]
                entry = {
                    **episode,
                    "chunks": frames // self.made_from["chunk_latent_frames"],
                    "shard": self.path.name,
                    "key": str(index),
                }
                yield entry, file.get_tensor(f"{index}.actions")

    def _metadata(self) -> dict[str, str]:
        # One entry: safetensors writes several in any order, and equal shards shall be equal files.
        return {"made_of": json.dumps({"made_from": self.made_from, "episodes": self.episodes})}


def plan_shards(folder: Path, episodes: list[dict], made_from: dict[str, Any]) -> list[LatentShard]:
    """The files that hold `episodes` of `described`."""
    size = check_whole("shard_size", made_from["shard_size"])
    return [
        LatentShard(folder / f"shard-{index:05d}.safetensors", episodes[first : first + size], made_from)
        for index, first in enumerate(range(0, len(episodes), size))
    ]


def begin_encoding(folder: Path, shards: list[LatentShard]) -> str:
    """Claims the folder, before any of the shards is written, and says which have to be and why.

    The index goes: until the new one is there, the folder is not finished.

    Raises:
        FileExistsError: if the folder holds latents that were made in another way, which it names.
        OSError: if it can't be written.
    """
    claim(folder, shards[0].made_from, outputs="shard-*.safetensors")
    (folder / INDEX).unlink(missing_ok=True)
    reasons = Counter(reason for shard in shards if (reason := shard.unfinished()))
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"encoding {reasons.total()} of {len(shards)} files" + (f": {told}" if told else "")


def write_index(
    folder: Path, shards: list[LatentShard], processor: AIMProcessor, no_prompt_embeds: torch.Tensor
) -> None:
    """Finishes a folder whose shards are all there, and removes others: writes the processor with the statistics of
    their actions, and at last the index. A folder without an index was not finished.
    """
    for path in {*folder.glob("*shard-*.safetensors*")} - {shard.path for shard in shards}:
        path.unlink()  # of another set of episodes, or left by a writer that was killed
    listed = [item for shard in shards for item in shard.entries()]
    processor.action_statistics = processor.compute_action_statistics(torch.cat([actions for _, actions in listed]))
    processor.save_pretrained(folder / "processor")
    with written_file(folder / NO_PROMPT) as temporary:
        save_file({"prompt_embeds": no_prompt_embeds.contiguous()}, temporary)
    index = {"made_from": shards[0].made_from, "episodes": [entry for entry, _ in listed]}
    write_text(folder / INDEX, json.dumps(index, indent=1))


def held_out_count(episodes: int, held_out: int | None) -> int:
    """How many of so many episodes are left out of training: `held_out`, or one in 20, at most 48.

    Raises:
        ValueError: if none would be left to train on.
    """
    if held_out is None:
        return min(max(episodes // HELD_OUT_SHARE, 1), HELD_OUT_MOST, max(episodes - 1, 0))
    if not 0 <= held_out < max(episodes, 1):
        raise ValueError(
            f"held_out is {held_out}; expected 0 to {max(episodes, 1) - 1}, for there are {episodes} episodes."
        )
    return held_out


class LatentWindows(Dataset):
    """Windows of `window_chunks` chunks from a latents folder, one item for each place where a window fits.

    Args:
        folder: made by `aim-hf encode-latents`.
        config: of the model, which says how many latent frames and actions a chunk has, and the lookahead.
        window_chunks: K; the longest episode's chunks if that is less.
        held_out: this many episodes, evenly spread over the index, are left out; None for one in 20, at most 48 ...
        only_held_out: ... or are the only ones.
        first_only: only the window at each episode's start.

    An item holds the arguments of [`AIMForWorldAction.forward`]; `value_weights` are the value map's cells. Where some
    episode lacks a view or a value map, there are also `rgb_weights` and `value_mask` (K*F, h, w): 0 in the cells of
    what is missing, 1 elsewhere. An episode shorter than a window gives one whose last chunks stand still and don't
    count: then both are there, and `action_mask`, 0 for these chunks.

    Raises:
        UnreadableFile: if the folder holds no index or one of an older version, or a file is damaged; from
            `__getitem__`, if what it reads is, or isn't finite.
        ValueError: if the latents have another geometry than `config`, or an argument is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        config: AIMConfig,
        window_chunks: int,
        held_out: int | None = 0,
        only_held_out: bool = False,
        first_only: bool = False,
    ) -> None:
        self.folder, self.config = Path(folder), config
        index = read_json(self.folder / INDEX, MEND)
        with reading(self.folder / INDEX, MEND):
            geometry = {name: index["made_from"][name] for name in GEOMETRY}
            self.video_encoder: str = index["made_from"]["video_encoder"]
            self.text_encoder: str = index["made_from"]["text_encoder"]
            episodes, longest = index["episodes"], max(entry["chunks"] for entry in index["episodes"])
        self._check_geometry(geometry)
        self.processor = AIMProcessor.from_pretrained(self.folder / "processor")
        if window_chunks < 1:
            raise ValueError(f"window_chunks is {window_chunks}; expected at least 1.")
        self.window_chunks, self.num_episodes = min(window_chunks, longest), len(episodes)
        count = held_out_count(len(episodes), held_out)
        out = {i * len(episodes) // count for i in range(count)}
        self.entries = [entry for i, entry in enumerate(episodes) if (i in out) == only_held_out]
        self._shards: dict[str, safe_open] = {}
        for entry in self.entries:
            self._check_entry(entry)  # refused now, and not in the middle of training
        self.num_short = sum(entry["chunks"] < self.window_chunks for entry in self.entries)
        self._incomplete = any({"missing_views", "missing_maps"} & set(entry) for entry in episodes)
        self._places = []
        for index, entry in enumerate(self.entries):
            last = 0 if first_only else max(entry["chunks"] - self.window_chunks, 0)
            self._places += [(index, start) for start in range(last + 1)]

    def _check_entry(self, entry: dict) -> None:
        """Raises UnreadableFile if an episode's tensors aren't there, or haven't the length that the index says."""
        path, frames = self.folder / entry["shard"], entry["chunks"] * self.config.chunk_latent_frames
        actions = frames * self.config.actions_per_latent_frame
        lengths = {"latents": (1, 1 + frames), "value_latents": (1, frames), "value_cells": (0, frames)}
        lengths |= {"actions": (0, actions), "executed_actions": (0, actions)}
        shard = self._shard(entry["shard"])
        with reading(path, MEND):
            for name, (axis, length) in lengths.items():
                found = shard.get_slice(f"{entry['key']}.{name}").get_shape()[axis]
                if found != length:
                    raise ValueError(f"{entry['key']}.{name} has length {found}; the index says {length}")

    def _check_geometry(self, geometry: dict[str, int]) -> None:
        asked = {name: getattr(self.config, name) for name in geometry}
        wrong = [name for name in geometry if geometry[name] != asked[name]]
        if wrong:
            have, want = (", ".join(f"{name}={of[name]}" for name in wrong) for of in (geometry, asked))
            raise ValueError(
                f"the latents of {self.folder} have {have}, and the model {want}. Give the model these sizes, or "
                "encode latents for it in another folder."
            )

    def check_codec(self, codec: VideoCodec) -> None:
        """Raises ValueError if the latents were made by another encoder: a model of them would imagine other pictures
        than this codec decodes."""
        if encoder_fingerprint(codec) != self.video_encoder:
            raise ValueError(
                f"the latents of {self.folder} were made by another video codec; train with that one's checkpoint, or "
                "encode latents by this one in another folder."
            )

    def check_text_encoder(self, fingerprint: str) -> None:
        """Raises ValueError if the instructions were encoded by another text encoder than that of a `fingerprint`."""
        if fingerprint != self.text_encoder:
            raise ValueError(
                f"the instructions in {self.folder} were encoded by another text encoder; train with that one's "
                "checkpoint, or encode latents by this one in another folder."
            )

    def summary(self) -> str:
        """How many episodes these are, and why not all."""
        left = self.num_episodes - len(self.entries)
        told = f"training on {len(self.entries)} of {self.num_episodes} episodes ({left} held out)"
        if self.num_short:
            told += f"; {self.num_short} are shorter than {self.window_chunks} chunks, and count as far as they go"
        return told

    def fingerprint(self) -> str:
        """SHA-256 of the index: of how the latents were made, and of each episode in them."""
        return hashlib.sha256((self.folder / INDEX).read_bytes()).hexdigest()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_shards": {}}  # a worker opens its own

    def _shard(self, name: str) -> safe_open:
        if name not in self._shards:
            with reading(self.folder / name, MEND):
                self._shards[name] = safe_open(self.folder / name, framework="pt")
        return self._shards[name]

    def __len__(self) -> int:
        return len(self._places)

    def no_prompt_embeds(self) -> torch.Tensor:
        """The text features of no instruction, (max_text_length, text_dim)."""
        with reading(self.folder / NO_PROMPT, MEND):
            embeds = load_file(self.folder / NO_PROMPT)["prompt_embeds"].float()
            if not embeds.isfinite().all():
                raise ValueError("prompt_embeds has values that aren't finite")
            return self._padded(embeds)

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
        shard, key = self._shard(entry["shard"]), entry["key"]
        per_chunk, n = self.config.chunk_latent_frames, self.config.actions_per_latent_frame
        first = start * per_chunk
        frames = self.window_chunks * per_chunk
        inside = min(frames, entry["chunks"] * per_chunk - first)  # the episode may end before the window does

        def finite(name, values):
            values = values.float()
            if not np.isfinite(values.numpy()).all():  # a tenth of torch's own time, and less than reading takes
                raise UnreadableFile(
                    f"{self.folder / entry['shard']}: {key}.{name} of {entry.get('task')} seed {entry.get('seed')} "
                    f"has values that aren't finite; {NOT_FINITE}."
                )
            return values

        def read(name, axis, begin, count):
            """`count` from `begin` on, along an axis; beyond the episode's end it stands still."""
            stored = shard.get_slice(f"{key}.{name}")
            end = begin + count
            values = finite(name, stored[begin:end] if axis == 0 else stored[:, begin:end])
            last = values.narrow(axis, values.shape[axis] - 1, 1)
            return torch.cat([values, *[last] * (count - values.shape[axis])], dim=axis)

        def scaled(name, lookahead_frames=0):
            return self.processor.scale_actions(read(name, 0, first * n, (frames + lookahead_frames) * n))

        lookahead = self.config.action_lookahead_frames
        latents = read("latents", 1, first, frames + 1)
        window = {
            "latents": latents,
            "value_latents": read("value_latents", 1, first, frames),
            "value_weights": read("value_cells", 0, first, frames),
            "actions": scaled("actions", lookahead),
            "executed_actions": scaled("executed_actions"),
            "prompt_embeds": self._padded(finite("prompt_embeds", shard.get_tensor(f"{key}.prompt_embeds"))),
        }

        def known(missing):
            cameras, shape = entry.get(missing, []), latents.shape[2:]
            weights = torch.ones(frames, *shape)
            for camera in cameras:
                weights[:, *self._cells(camera, *shape)] = 0
            # Where no camera is known, what lies beside the slots isn't either.
            weights[0 if len(cameras) == len(self.processor.cameras) else inside :] = 0
            return weights

        if self._incomplete or self.num_short:
            window |= {"rgb_weights": known("missing_views"), "value_mask": known("missing_maps")}
        if self.num_short:
            counts = inside + lookahead * (inside == frames)
            window["action_mask"] = (torch.arange((frames + lookahead) * n) < counts * n).float()
        return window
