"""Windows of K chunks of encoded episodes (`latents.py`), for training.

Shards are memory-mapped, so a window reads only its own bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.utils.data import Dataset

from ..model.configuration_aim import AIMConfig
from ..utils.checks import check_whole
from ..utils.files import UnreadableFile, read_json, reading
from .latents import INDEX, MEND, NO_PROMPT, PROCESSOR, camera_cells, encoder_fingerprint, stored_processor

if TYPE_CHECKING:  # a loader's workers import this module, and diffusers takes longer than all else of it
    from ..pipeline.codec import VideoCodec

MAKE_AGAIN = "delete it and run `aim-hf encode-latents` again, which makes the missing files"
# Fields of the model's config that must equal those of the latents.
GEOMETRY = ("chunk_latent_frames", "actions_per_latent_frame", "in_channels", "text_dim", "action_dim")
HELD_OUT_SHARE, HELD_OUT_MOST = 20, 48  # one episode in 20, at most 48


def held_out_count(episodes: int, held_out: int | None) -> int:
    """The number of episodes held out of training: `held_out`, or by default one in 20, at most 48.

    Raises:
        ValueError: if it is no whole number, or no episode would be left to train on.
    """
    if held_out is None:
        return min(max(episodes // HELD_OUT_SHARE, 1), HELD_OUT_MOST, max(episodes - 1, 0))
    if check_whole("held_out", held_out, least=0) >= max(episodes, 1):
        raise ValueError(
            f"held_out is {held_out}; expected 0 to {max(episodes, 1) - 1}, for there are {episodes} episodes."
        )
    return held_out


class LatentWindows(Dataset):
    """Windows of `window_chunks` chunks from a latents folder, one item for each first chunk of a window.

    Args:
        folder: folder written by `aim-hf encode-latents`.
        config: config of the model; gives the latent frames and actions of a chunk, and the lookahead.
        window_chunks: K, at most the chunks of the longest episode.
        held_out: number of held-out episodes, evenly spread over the index; None for one in 20, at most 48.
        only_held_out: use only the held-out episodes instead of all others.
        first_only: use only the first window of each episode.
        balance_tasks: repeat the windows of tasks that have few. A task with a 1/r² of the windows of the largest has
            each of its windows r times, rounded to a whole number.

    An item holds the arguments of a [`FlowMatchingLoss`] call, with `value_cells` (K*F, h, w), the value map's maximum
    in each latent cell, from which `weigh_values` makes `value_weights`. If some episode lacks a view or a value map,
    items also have `rgb_weights` and `value_mask` (K*F, h, w): 0 in the cells of a missing camera, 1 elsewhere. An
    episode shorter than a window gives one window, padded with its last frame and action. Then items have both masks
    and `action_mask` (K*P,), all 0 in the padding. `action_mask` is also 0 for the actions of a recovery in
    predictions that begin before the intervention, which they couldn't foresee.

    Raises:
        UnreadableFile: if the index is missing or of an older version, or a file is damaged; from `__getitem__`, if
            the values read are damaged or not finite.
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
        balance_tasks: bool = False,
    ) -> None:
        self.folder, self.config = Path(folder), config
        index = read_json(self.folder / INDEX, MEND)
        with reading(self.folder / INDEX, MEND):
            geometry = {name: index["made_from"][name] for name in GEOMETRY}
            fields = {name: index["made_from"][name] for name in PROCESSOR}
            self.latent_size: list[int] = index["made_from"]["latent_size"]
            self.video_encoder: str = index["made_from"]["video_encoder"]
            self.text_encoder: str = index["made_from"]["text_encoder"]
            episodes = index["episodes"]
            places = [(self.folder / entry["shard"], entry["key"], entry["chunks"]) for entry in episodes]
            longest = max(chunks for _, _, chunks in places)
        self._check_geometry(geometry)
        self.processor = stored_processor(self.folder)
        self._check_processor(fields)
        self.window_chunks = min(check_whole("window_chunks", window_chunks), longest)
        self.num_episodes = len(episodes)
        count = held_out_count(len(episodes), held_out)
        out = {i * len(episodes) // count for i in range(count)}
        self.entries = [entry for i, entry in enumerate(episodes) if (i in out) == only_held_out]
        self._shards: dict[str, safe_open] = {}
        for entry in self.entries:
            self._check_entry(entry)  # so that a damaged folder is refused before training starts
        self.num_short = sum(entry["chunks"] < self.window_chunks for entry in self.entries)
        self._intervened = any("intervention" in entry for entry in episodes)
        self._incomplete = any({"missing_views", "missing_maps"} & set(entry) for entry in episodes)
        self._places = []
        for index, entry in enumerate(self.entries):
            last = 0 if first_only else max(entry["chunks"] - self.window_chunks, 0)
            self._places += [(index, start) for start in range(last + 1)]
        if balance_tasks:
            count = Counter(self.entries[index]["task"] for index, _ in self._places)
            times = {task: round((max(count.values()) / windows) ** 0.5) for task, windows in count.items()}
            self._places = [place for place in self._places for _ in range(times[self.entries[place[0]]["task"]])]

    def _check_entry(self, entry: dict[str, Any]) -> None:
        """Raises UnreadableFile if tensors of an episode are missing, or have another shape than the index says."""
        config, frames = self.config, entry["chunks"] * self.config.chunk_latent_frames
        actions = [frames * config.actions_per_latent_frame, config.action_dim]
        shapes = {
            "latents": [config.in_channels, 1 + frames, *self.latent_size],
            "value_latents": [config.in_channels, frames, *self.latent_size],
            "value_cells": [frames, *self.latent_size],
            "actions": actions,
            "executed_actions": actions,
        }
        shard = self._shard(entry["shard"])
        with reading(self.folder / entry["shard"], MAKE_AGAIN):
            for name, shape in shapes.items():
                found = shard.get_slice(f"{entry['key']}.{name}").get_shape()
                if found != shape:
                    raise ValueError(f"{entry['key']}.{name} has shape {found}; expected {shape}, by {INDEX}")
            self._check_text(f"{entry['key']}.prompt_embeds", shard)

    def _check_text(self, key: str, file: safe_open) -> None:
        """Raises ValueError if text features have another shape than the processor's and the model's."""
        found, most, width = file.get_slice(key).get_shape(), self.processor.max_text_length, self.config.text_dim
        if len(found) != 2 or not 1 <= found[0] <= most or found[1] != width:
            raise ValueError(f"{key} has shape {found}; expected [1 to {most}, {width}], by {INDEX}")

    def _check_processor(self, fields: dict[str, Any]) -> None:
        """Raises UnreadableFile if the processor isn't the one that the latents were made with."""
        for name, value in fields.items():
            if getattr(self.processor, name) != value:
                raise UnreadableFile(
                    f"{self.folder / 'processor' / 'processor_config.json'} has {name} "
                    f"{getattr(self.processor, name)!r}; expected {value!r}, by {INDEX}. Run `aim-hf encode-latents` "
                    "again, which writes the processor of these latents."
                )

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
        """Raises ValueError if the latents were made by another encoder, whose latents this codec can't decode."""
        if encoder_fingerprint(codec) != self.video_encoder:
            raise ValueError(
                f"the latents of {self.folder} were made by another video codec; train with that one's checkpoint, or "
                "encode latents by this one in another folder."
            )

    def check_text_encoder(self, fingerprint: str) -> None:
        """Raises ValueError unless the instructions were encoded by the text encoder with this `fingerprint`."""
        if fingerprint != self.text_encoder:
            raise ValueError(
                f"the instructions in {self.folder} were encoded by another text encoder; train with that one's "
                "checkpoint, or encode latents by this one in another folder."
            )

    def summary(self) -> str:
        """A message on the number of episodes, of held-out ones and of short ones."""
        left = self.num_episodes - len(self.entries)
        message = f"training on {len(self.entries)} of {self.num_episodes} episodes ({left} held out)"
        if self.num_short:
            message += f"; {self.num_short} are shorter than {self.window_chunks} chunks; their padding is masked"
        return message

    def fingerprint(self) -> str:
        """SHA-256 of the index, which has the settings of the latents and the digest of each episode."""
        return hashlib.sha256((self.folder / INDEX).read_bytes()).hexdigest()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_shards": {}}  # each worker opens its own files

    def _shard(self, name: str) -> safe_open:
        if name not in self._shards:
            with reading(self.folder / name, MEND):
                self._shards[name] = safe_open(self.folder / name, framework="pt")
        return self._shards[name]

    def __len__(self) -> int:
        return len(self._places)

    def no_prompt_embeds(self) -> torch.Tensor:
        """The text features of an empty instruction, (max_text_length, text_dim)."""
        path = self.folder / NO_PROMPT
        with reading(path, MEND), safe_open(path, framework="pt") as file:
            self._check_text("prompt_embeds", file)
            embeds = file.get_tensor("prompt_embeds").float()
            if not embeds.isfinite().all():
                raise ValueError("prompt_embeds has values that aren't finite")
            return self._padded(embeds)

    def _padded(self, text: torch.Tensor) -> torch.Tensor:
        # Stored without padding. Wan's cross-attention reads zeros up to the full length, too.
        return F.pad(text, (0, 0, 0, self.processor.max_text_length - len(text)))

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        index, start = self._places[item]
        entry = self.entries[index]
        shard, key = self._shard(entry["shard"]), entry["key"]
        per_chunk, n = self.config.chunk_latent_frames, self.config.actions_per_latent_frame
        first = start * per_chunk
        frames = self.window_chunks * per_chunk
        inside = min(frames, entry["chunks"] * per_chunk - first)  # the episode may end before the window does

        def finite(name: str, values: torch.Tensor) -> torch.Tensor:
            values = values.float()
            if not np.isfinite(values.numpy()).all():  # takes a tenth of the time of torch's isfinite
                raise UnreadableFile(
                    f"{self.folder / entry['shard']}: {key}.{name} of {entry.get('task')} seed {entry.get('seed')} "
                    f"has values that aren't finite; {MAKE_AGAIN}."
                )
            return values

        def read(name: str, axis: int, begin: int, count: int) -> torch.Tensor:
            """`count` values from `begin` on along an axis; beyond the end of the episode, the last one repeats."""
            stored = shard.get_slice(f"{key}.{name}")
            end = begin + count
            values = finite(name, stored[begin:end] if axis == 0 else stored[:, begin:end])
            last = values.narrow(axis, values.shape[axis] - 1, 1)
            return torch.cat([values, *[last] * (count - values.shape[axis])], dim=axis)

        def scaled(name: str, lookahead_frames: int = 0) -> torch.Tensor:
            return self.processor.scale_actions(read(name, 0, first * n, (frames + lookahead_frames) * n))

        lookahead = self.config.action_lookahead_frames
        latents = read("latents", 1, first, frames + 1)
        window = {
            "latents": latents,
            "value_latents": read("value_latents", 1, first, frames),
            "value_cells": read("value_cells", 0, first, frames),
            "actions": scaled("actions", lookahead),
            "executed_actions": scaled("executed_actions"),
            "prompt_embeds": self._padded(finite("prompt_embeds", shard.get_tensor(f"{key}.prompt_embeds"))),
        }

        def known(missing: str) -> torch.Tensor:
            """1 in the cells of known cameras within the episode, 0 elsewhere: (frames, h, w)."""
            cameras, shape = entry.get(missing, []), latents.shape[2:]
            weights = torch.ones(frames, *shape)
            for camera in cameras:
                weights[:, *camera_cells(self.processor, camera, *shape)] = 0
            # Without any camera, the cells outside the slots are unknown, too.
            weights[0 if len(cameras) == len(self.processor.cameras) else inside :] = 0
            return weights

        if self._incomplete or self.num_short:
            window |= {"rgb_weights": known("missing_views"), "value_mask": known("missing_maps")}
        if self.num_short or self._intervened:
            begins = torch.arange(0, frames * n, per_chunk * n)[:, None]  # (K, 1), the first step of each prediction
            steps = begins + torch.arange((per_chunk + lookahead) * n)  # (K, P)
            known = steps < (inside + lookahead * (inside == frames)) * n
            if (step := entry.get("intervention")) is not None:
                known &= (steps < step - first * n) | (begins >= step - first * n)
            window["action_mask"] = known.flatten().float()
        return window
