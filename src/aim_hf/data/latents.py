"""Episodes encoded for training: latents, value latents, actions and text features.

    folder/made_from.json        the settings of the encoding, see `made_from`
    folder/processor/            the `AIMProcessor`, with the statistics of these actions
    folder/shard-00000.safetensors
    folder/no_prompt.safetensors the text features of an empty instruction, for training with dropped instructions
    folder/index.json            `made_from`, and an entry for each of the `episodes`: shard, key of its tensors,
                                 chunks, task, seed, digest of its row, missing cameras

Training reads windows of this folder (`latent_windows.py`) and never runs the VAE or the text encoder.
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
from safetensors.torch import save_file

from ..model.configuration_aim import AIMConfig
from ..model.processing_aim import AIMProcessor
from ..utils.checks import check_whole, naming
from ..utils.files import UnreadableFile, claim, reading, write_text, written_file, written_folder

if TYPE_CHECKING:  # not needed to train on latents
    from datasets import Dataset as HubDataset

    from ..pipeline.codec import VideoCodec
    from .episodes import Episode

INDEX, NO_PROMPT = "index.json", "no_prompt.safetensors"
MEND = "run `aim-hf encode-latents`: there are no latents, or not all of them, or those of an older version"
PROCESSOR = ("canvas_size", "cameras", "action_space", "action_dim", "max_text_length")  # fields that are settings
STORED_DTYPE = torch.float16  # of latents and text features, whose values are of order 1
DESCRIPTION = ("suite", "task", "split", "seed", "instruction")


def encode_episode(
    episode: Episode,
    codec: VideoCodec,
    processor: AIMProcessor,
    actions_per_latent_frame: int,
    chunk_latent_frames: int,
) -> dict[str, torch.Tensor]:
    """Encodes an episode of T actions as K = ceil(T / actions of a chunk) + 1 whole chunks.

    The last frame, value map and action are repeated to the end of the last chunk. At least one whole chunk is such
    padding, so that a policy learns to rest after success. Missing views and value maps are black.

    Returns:
        latents (C, 1 + K*F, h, w), all RGB frames encoded as one video; value_latents (C, K*F, h, w), each chunk
        encoded separately; value_cells (K*F, h, w), the maximum of the value map in each latent cell, in [0, 1];
        actions, executed_actions (K*F*n, action_dim), relative (`relative_actions`) but not scaled.

    Raises:
        ValueError: for an episode without actions, or if `actions_per_latent_frame` isn't a multiple of the codec's
            temporal factor.
    """
    n = actions_per_latent_frame
    if n % codec.temporal_factor:
        raise ValueError(
            f"actions_per_latent_frame is {n}; expected a multiple of {codec.temporal_factor}, the RGB frames of a "
            "latent frame."
        )
    stride = n // codec.temporal_factor  # control steps between two RGB frames
    steps = len(episode.action)
    if not steps:
        raise ValueError(f"{episode.task} seed {episode.seed} has one frame and no action; leave this episode out.")
    chunks = -(-steps // (chunk_latent_frames * n)) + 1
    latent_frames = chunks * chunk_latent_frames
    frames = torch.arange(0, latent_frames * n + 1, stride).clamp(max=steps).numpy()

    rgb, value = episode.canvases(processor, frames)
    latents = codec.encode(processor.canvas_to_pixels(rgb[None]))[0]

    value_latents, value_cells = encode_value_maps(codec, processor, value[None, 1:], chunk_latent_frames)

    initial_pose = unit_pose(episode.state[0]) if episode.action_space == "ee" else None

    def padded(actions: np.ndarray) -> torch.Tensor:
        with naming(f"{episode.task} seed {episode.seed}"):
            relative = processor.relative_actions(torch.from_numpy(actions).double(), initial_pose)
        last = relative[-1:].expand(latent_frames * n - steps, -1)
        return torch.cat([relative, last]).float()

    return {
        "latents": latents.to(STORED_DTYPE),
        "value_latents": value_latents[0].to(STORED_DTYPE),
        "value_cells": value_cells[0].to(STORED_DTYPE),
        "actions": padded(episode.expert_action),
        "executed_actions": padded(episode.action),
    }


def encode_value_maps(
    codec: VideoCodec, processor: AIMProcessor, value: np.ndarray, chunk_latent_frames: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes the value maps of K chunks of F latent frames, each chunk separately.

    Args:
        value: canvases (B, K*F * codec.temporal_factor, H, W, 3) uint8, of the frames after the first.

    Returns:
        value latents (B, C, K*F, h, w); value cells (B, K*F, h, w), the maximum of the value map in each latent cell,
        in [0, 1].
    """
    clips = value.reshape(-1, chunk_latent_frames * codec.temporal_factor, *value.shape[2:])
    latents = codec.encode_value_maps(processor.canvas_to_pixels(clips))
    latents = latents.unflatten(0, (len(value), -1)).transpose(1, 2).flatten(2, 3)
    scalar = torch.from_numpy(processor.rgb_to_value(value)).unflatten(1, (-1, codec.temporal_factor))
    return latents, F.max_pool2d(scalar.amax(dim=2), codec.spatial_factor)


def camera_cells(processor: AIMProcessor, camera: str, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the latent cells that overlap a camera's slot, on a canvas of `height` x `width` cells."""
    slot, spans = processor.cameras[camera]["slot"], []
    for axis, cells in enumerate((height, width)):
        pixels = processor.canvas_size[axis] // cells
        spans.append(slice(slot[axis] // pixels, -(-(slot[axis] + slot[2 + axis]) // pixels)))
    return tuple(spans)


def unit_pose(state: np.ndarray) -> torch.Tensor:
    """A state (16,) of space `ee` as the pose that actions are relative to, float64."""
    pose = torch.from_numpy(state).double()
    for arm in (0, 8):  # quaternions stored as float32 aren't exactly of unit length
        pose[arm + 3 : arm + 7] /= pose[arm + 3 : arm + 7].norm()
    return pose


def fit_processor(processor: AIMProcessor, dataset: HubDataset) -> AIMProcessor:
    """The processor for a dataset's robot: tokenizer and canvas of `processor`; action space, control rate and camera
    sizes of the dataset. The slot of a camera that no episode has stays empty, and the processor lists no such camera.

    Raises:
        ValueError: if no camera of the dataset has a slot, or a camera's first video is damaged.
    """
    from .episodes import decode_column

    cameras = {}
    for name, camera in processor.cameras.items():
        rows = np.flatnonzero(_present(dataset, f"rgb_{name}"))
        if len(rows):
            first = decode_column(dataset[int(rows[0])], f"rgb_{name}", [0])
            cameras[name] = {"size": list(first.shape[1:3]), "slot": camera["slot"]}
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


def without_slot(dataset: HubDataset, processor: AIMProcessor) -> list[str]:
    """The cameras of the dataset that the processor's canvas has no slot for, so that their pictures are left out."""
    cameras = [name.removeprefix("rgb_") for name in dataset.column_names if name.startswith("rgb_")]
    return [name for name in cameras if name not in processor.cameras and _present(dataset, f"rgb_{name}").any()]


def check_instructions(processor: AIMProcessor, instructions: list[str]) -> None:
    """Refuses instructions that a policy couldn't read, before any is encoded.

    Raises:
        ValueError: as `AIMProcessor.tokenize`; and for two instructions that differ only in characters that the
            tokenizer doesn't know.
    """
    unknown, seen = processor.tokenizer.unk_token_id, {}
    for instruction, tokens in zip(instructions, processor.tokenize(instructions).input_ids.tolist(), strict=True):
        other = seen.setdefault(tuple(tokens), instruction)
        if other != instruction and unknown in tokens:
            raise ValueError(
                f"instructions {other!r} and {instruction!r} are the same to the policy, whose tokenizer doesn't know "
                "the characters in which they differ. Write them in words that it knows, or take a policy whose text "
                "encoder knows these."
            )


def missing(dataset: HubDataset, processor: AIMProcessor) -> list[dict[str, list[str]]]:
    """For each episode, the cameras of the processor without pictures (`missing_views`) and without value maps
    (`missing_maps`). A complete episode has an empty dict."""
    entries: list[dict[str, list[str]]] = [{} for _ in range(len(dataset))]
    for name, column in (("missing_views", "rgb"), ("missing_maps", "value")):
        for camera in processor.cameras:
            for row in np.flatnonzero(~_present(dataset, f"{column}_{camera}")):
                entries[row].setdefault(name, []).append(camera)
    return entries


def described(dataset: HubDataset, processor: AIMProcessor) -> list[dict[str, Any]]:
    """The index entry of each episode: its description, its missing views and maps, its `intervention` if it has one,
    and `row`, the digest of its row."""
    entries = dataset.select_columns(list(DESCRIPTION)).to_list()
    for entry, lacks, step, digest in zip(
        entries, missing(dataset, processor), dataset["intervention"], row_digests(dataset), strict=True
    ):
        entry.update(lacks, row=digest, **({} if step is None else {"intervention": step}))
    return entries


def row_digests(dataset: HubDataset) -> Iterator[str]:
    """SHA-256 of each row with its videos. It doesn't depend on the other rows."""
    tables = dataset.with_format("arrow")
    for index in range(len(dataset)):
        # `take` copies: the buffers of a slice would hold other rows, too.
        row = tables[index : index + 1].take([0]).combine_chunks()
        digest = hashlib.sha256()
        for name in row.column_names:
            digest.update(name.encode())
            for buffer in row[name].chunk(0).buffers():
                digest.update(buffer or b"")
        yield digest.hexdigest()


def _present(dataset: HubDataset, column: str) -> np.ndarray:
    """The rows that aren't null in a column, (len(dataset),) bool. No video is read."""
    # In small batches, since rows of a shuffled or filtered dataset are copied with their videos.
    batches = dataset.select_columns([column]).with_format("arrow").iter(batch_size=16)
    return np.concatenate([batch[column].is_valid().to_numpy() for batch in batches])


def made_from(
    config: AIMConfig,
    processor: AIMProcessor,
    codec: VideoCodec,
    text_encoder: str,
    text_dim: int,
    fps: float,
    shard_size: int,
) -> dict[str, Any]:
    """The settings that latents depend on besides the episodes: encoders and geometry.

    Args:
        config: gives the latent frames and actions of a chunk.
        text_encoder: `fingerprint` of the text encoder. text_dim: width of its features.
        fps: control steps a second. shard_size: episodes in a file.
    """
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
        **{name: getattr(processor, name) for name in PROCESSOR},
    }


def encoder_fingerprint(codec: VideoCodec) -> str:
    """SHA-256 of the encoder and its normalisation. The decoder isn't part of it: it may be trained further."""
    vae, digest = codec.vae, hashlib.sha256()
    for part in (vae.encoder, vae.quant_conv):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    digest.update(json.dumps([vae.config.latents_mean, vae.config.latents_std]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class LatentShard:
    """One file of a latents folder. episodes: its entries of `described`. made_from: as `made_from` returns it."""

    path: Path
    episodes: list[dict[str, Any]]
    made_from: dict[str, Any]

    def unfinished(self) -> str | None:
        """Why the file must be written; None if it is complete and holds exactly these episodes."""
        if not self.path.is_file():
            return "not there yet"
        try:
            with safe_open(self.path, framework="pt") as file:
                return None if file.metadata() == self._metadata() else "made from other episodes"
        except SafetensorError:
            return "damaged"

    def write(self, encoded: Iterable[dict[str, torch.Tensor]]) -> None:
        """Writes the tensors of the episodes, as a complete file or not at all.

        Raises:
            OSError: if the file can't be written.
            ValueError: for values that aren't finite; names the episode.
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

    def entries(self) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """The index entry of each episode, and its actions."""
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
        # A single entry, because safetensors writes several in any order, and equal shards should be equal files.
        return {"made_of": json.dumps({"made_from": self.made_from, "episodes": self.episodes})}


def plan_shards(folder: Path, episodes: list[dict[str, Any]], made_from: dict[str, Any]) -> list[LatentShard]:
    """The shards of `episodes`, which are those of `described`."""
    size = check_whole("shard_size", made_from["shard_size"])
    return [
        LatentShard(folder / f"shard-{index:05d}.safetensors", episodes[first : first + size], made_from)
        for index, first in enumerate(range(0, len(episodes), size))
    ]


def begin_encoding(folder: Path, shards: list[LatentShard]) -> str:
    """Claims the folder before any shard is written. Returns a message on how many shards must be written, and why.

    Removes the index: a folder without an index is unfinished.

    Raises:
        FileExistsError: if the folder holds latents of other settings; names them.
        OSError: if the folder can't be written.
    """
    claim(folder, shards[0].made_from, "shard-*.safetensors", "processor")
    (folder / INDEX).unlink(missing_ok=True)
    reasons = Counter(reason for shard in shards if (reason := shard.unfinished()))
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"encoding {reasons.total()} of {len(shards)} files" + (f": {listed}" if listed else "")


def write_index(
    folder: Path, shards: list[LatentShard], processor: AIMProcessor, no_prompt_embeds: torch.Tensor
) -> None:
    """Finishes a folder whose shards are all written: removes other shards, then writes the processor with the
    statistics of the actions and, last, the index. A folder without an index is unfinished.
    """
    for path in {*folder.glob("*shard-*.safetensors*")} - {shard.path for shard in shards}:
        path.unlink()  # of another set of episodes, or a temporary file of a killed writer
    listed = [item for shard in shards for item in shard.entries()]
    processor.action_statistics = processor.compute_action_statistics(torch.cat([actions for _, actions in listed]))
    with written_folder(folder / "processor") as place:
        processor.save_pretrained(place)
    with written_file(folder / NO_PROMPT) as temporary:
        save_file({"prompt_embeds": no_prompt_embeds.contiguous()}, temporary)
    index = {"made_from": shards[0].made_from, "episodes": [entry for entry, _ in listed]}
    write_text(folder / INDEX, json.dumps(index, indent=1))


def stored_processor(folder: Path) -> AIMProcessor:
    """The processor of a folder of latents.

    Raises:
        UnreadableFile: if it is missing or damaged, or has no statistics of actions.
    """
    with reading(folder / "processor", MEND):
        processor = AIMProcessor.from_pretrained(folder / "processor")
    if processor.action_statistics is None:
        raise UnreadableFile(
            f"{folder / 'processor' / 'processor_config.json'} has no action_statistics; expected those of these "
            "latents. Run `aim-hf encode-latents` again, which writes them."
        )
    return processor
