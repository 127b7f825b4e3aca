"""Windows of raw episodes, for training on pictures. Only the frames of a window are decoded.

Stage 1 trains on latents (`latent_windows.py`), which is faster; these windows are for codecs, other models and
augmentations. A window reads only the requested columns of its episode's row group, and decodes its frames from the
preceding key frame on. Collections and imports write one row group per episode.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset as StreamedDataset
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..envs.base import CAMERAS
from ..utils.checks import check_choice, check_path, check_whole
from ..utils.extras import extra
from ..value_maps.render import render_value_maps
from .episodes import VECTORS, decode_column, event_from_row
from .shards import check_folder, shard_paths

with extra("data"):
    import pyarrow as pa
    import pyarrow.parquet as pq

VALUE_MAPS = ("rendered", "decoded", None)
SENTENCES = ("task", "seed", "instruction")
MOST_WORKERS = 1024
OPEN_FILES = 256  # files that a process keeps open; Linux allows it 1024


@dataclass(frozen=True)
class Window:
    """The content of a window.

    num_frames: pictures. frame_stride: control steps between two pictures. cameras: the views to decode.
    value_maps: `"rendered"` from the contacts, `"decoded"` from their videos, or None.

    Raises:
        ValueError: for values out of range.
    """

    num_frames: int
    frame_stride: int = 1
    cameras: tuple[str, ...] = CAMERAS
    value_maps: str | None = "rendered"

    def __post_init__(self) -> None:
        check_whole("num_frames", self.num_frames, least=2)
        check_whole("frame_stride", self.frame_stride)
        if not self.cameras or not set(self.cameras) <= set(CAMERAS):
            raise ValueError(f"cameras={self.cameras}; expected some of {CAMERAS}.")
        check_choice("value_maps", self.value_maps, VALUE_MAPS)

    @property
    def steps(self) -> int:
        """The actions of a window, T."""
        return (self.num_frames - 1) * self.frame_stride

    @property
    def columns(self) -> list[str]:
        """The columns that a window is read from."""
        names = [*SENTENCES, *VECTORS, *(f"rgb_{camera}" for camera in self.cameras)]
        if self.value_maps == "decoded":
            names += [f"value_{camera}" for camera in self.cameras]
        if self.value_maps == "rendered":
            names += ["events"]
            names += [f"{kind}_{camera}" for kind in ("intrinsics", "extrinsics") for camera in self.cameras]
        return names

    def cut(self, row: dict[str, Any], start: int) -> dict[str, Any]:
        """The window that starts at frame `start` of a row. Beyond the end of the episode, state and action repeat.

        Returns:
            `task`, `seed`, `instruction` and `start`; `state` (T + 1, D), `action` (T, D) and `expert_action` (T, D)
            float32; `rgb`, camera -> (num_frames, H, W, 3) uint8, of the views present; `value`, camera ->
            (num_frames, H, W) uint8, of the views with value maps.

        Raises:
            ValueError: if the window has NaN, or a video is damaged or too short; names the episode.
        """
        where = f"{row['task']} seed {row['seed']}"
        window = {name: row[name] for name in SENTENCES} | {"start": start}
        last = len(row["state"]) - 1
        if not 0 <= start < max(last, 1) or not last:
            raise ValueError(f"{where}: no window starts at frame {start}; the episode has {last} actions")
        for name in VECTORS:
            steps = np.arange(start, start + self.steps + (name == "state")).clip(max=last - (name != "state"))
            values = np.array(row[name], dtype=np.float32)[steps]
            if not np.isfinite(values).all():
                raise ValueError(f"{where}: {name} holds NaN or infinity; record this episode again")
            window[name] = torch.from_numpy(values)
        frames = [min(start + step, last) for step in range(0, self.steps + 1, self.frame_stride)]
        rgb = {c: decode_column(row, f"rgb_{c}", frames) for c in self.cameras if row[f"rgb_{c}"] is not None}
        value = {}
        if self.value_maps == "decoded":
            known = [camera for camera in rgb if row[f"value_{camera}"] is not None]
            value = {camera: decode_column(row, f"value_{camera}", frames)[..., 0] for camera in known}
        elif self.value_maps == "rendered" and row["events"] is not None:
            events = [event_from_row(event) for event in row["events"]]
            for camera in rgb:
                if row[f"intrinsics_{camera}"] is not None:
                    intrinsics = np.reshape(row[f"intrinsics_{camera}"], (-1, 3, 3))
                    extrinsics = np.reshape(row[f"extrinsics_{camera}"], (-1, 3, 4))
                    size = rgb[camera].shape[1:3]
                    value[camera] = render_value_maps(events, intrinsics, extrinsics, *size, frames)[..., 0]
        window["rgb"] = {camera: torch.from_numpy(pictures) for camera, pictures in rgb.items()}
        window["value"] = {camera: torch.from_numpy(maps.copy()) for camera, maps in value.items()}
        return window


class EpisodeWindows(Dataset):
    """All windows of a folder of episodes, in order, for random access by a `DataLoader` with any number of workers.

    An item is the result of [`Window.cut`]. An episode shorter than a window gives one window, whose end repeats the
    last state and action.

    Raises:
        FileNotFoundError, ValueError: of `check_folder`.
    """

    def __init__(self, folder: str | Path, window: Window) -> None:
        folder = check_path("folder", folder)
        check_folder(folder)
        self.window, self.paths = window, shard_paths(folder)
        self._places: list[tuple[int, int, int]] = []  # (shard, row group, row in the group) of each episode
        counts = []
        for shard, path in enumerate(self.paths):
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                self._places += [(shard, group, row) for row in range(metadata.row_group(group).num_rows)]
            lengths = pq.read_table(path, columns=["num_frames"])["num_frames"].to_pylist()
            counts += [max(length - window.steps, 1) for length in lengths]
        self._ends = np.cumsum(counts)
        self._files: dict[int, pq.ParquetFile] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # each worker opens its own files

    def __getitem__(self, item: int) -> dict[str, Any]:
        if not 0 <= item < len(self):
            raise IndexError(f"window {item} of {len(self)}")
        episode = int(np.searchsorted(self._ends, item, side="right"))
        shard, group, row = self._places[episode]
        if shard not in self._files:
            if len(self._files) == OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[shard] = pq.ParquetFile(self.paths[shard])
        table = self._files[shard].read_row_group(group, columns=self.window.columns).slice(row, 1)
        start = item - (int(self._ends[episode - 1]) if episode else 0)
        return self.window.cut(_row(table), start)


class StreamedWindows(IterableDataset):
    """Random windows of streamed episodes, such as from the Hub:

        rows = load_dataset("org/aim-robotwin-30k", split="easy", streaming=True).shuffle(seed=0)
        loader = DataLoader(StreamedWindows(rows, Window(9), windows_per_episode=4), batch_size=8, num_workers=4)

    A pass reads each episode once and yields `windows_per_episode` consecutive windows of it; shuffle the rows with a
    buffer to mix episodes in a batch. An episode shorter than a window gives windows whose end repeats the last state
    and action. Workers divide the rows among them. Windows differ from pass to pass; they depend on `seed`, the pass
    and the episode, but not on the workers. Passes are numbered; `set_epoch` sets the next number, to resume a run.

    Raises:
        ValueError: if a number isn't whole, or is below 1 (`seed`: below 0), and for rows that can be read only once.
    """

    def __init__(
        self, rows: Iterable[dict[str, Any]], window: Window, windows_per_episode: int = 1, seed: int = 0
    ) -> None:
        if isinstance(rows, Iterator):
            raise ValueError(
                f"rows are {type(rows).__name__}, which is empty after one pass; give a dataset or a list."
            )
        if isinstance(rows, StreamedDataset) and rows.features:
            rows = rows.decode(False)  # `cut` decodes only the frames of a window, and names a damaged video
        self.rows, self.window, self.seed = rows, window, check_whole("seed", seed, least=0)
        self.windows_per_episode = check_whole("windows_per_episode", windows_per_episode)
        # The next pass of each worker, in shared memory, because workers end with the pass. It must be the same for
        # all workers of a loader: `datasets` divides the shards among them, in the order of that pass.
        self._next_pass = torch.zeros(MOST_WORKERS, dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._next_pass.fill_(check_whole("epoch", epoch, least=0))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        index, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch = int(self._next_pass[index])
        self._next_pass[index] = epoch + 1
        if index == 0:  # for those that this pass doesn't have, and a later one may
            self._next_pass[num_workers:] = epoch + 1
        rows = self.rows
        if isinstance(rows, StreamedDataset):
            rows.set_epoch(epoch)  # reshuffles; `datasets` divides the shards among workers itself
        else:
            rows = islice(rows, index, None, num_workers)
        for row in rows:
            name = zlib.crc32("/".join(row[part] for part in ("suite", "task", "split")).encode())
            rng = np.random.default_rng([self.seed, epoch, name, row["seed"]])
            starts = max(row["num_frames"] - self.window.steps, 1)
            for start in rng.integers(starts, size=self.windows_per_episode):
                yield self.window.cut(row, int(start))


def _row(table: pa.Table) -> dict[str, Any]:
    """The only row of a table, with matrices as arrays: converting them to lists takes longer than decoding."""
    row = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        vectors = pa.types.is_list(column.type) and pa.types.is_fixed_size_list(column.type.value_type)
        if vectors and column.null_count == 0:
            width = column.type.value_type.list_size
            row[name] = column.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        else:
            row[name] = column.to_pylist()[0]
    return row
