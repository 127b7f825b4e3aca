"""Reads LeRobot datasets v3.0, v2.1 and v2.0: tables with pyarrow, videos as compressed clips.

v3.0 stores many episodes in a file, v2.x one file per episode; `LeRobotSource` hides the difference. Episodes are
identified by `episode_index`, which has gaps if episodes were deleted. Only requested columns, cameras and episodes
are read, or downloaded from the Hub. Other columns may be of any type.
"""

import hashlib
import io
import math
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from PIL import Image
from torchcodec.decoders import VideoDecoder

from ...utils.checks import check_path
from ...utils.files import files_in, read_json, read_json_lines, reading
from ...utils.pictures import check_bits, rgb_pixels
from ..shards import KEY, reading_repo
from ..video import encode_video
from . import format
from .clips import check_clip, clip_times, cut_clip, frame_rate

VERSIONS = ("v2.0", "v2.1", "v3.0")
MEND = "download or record it again"
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold
NUMBERS = re.compile(r"(float|u?int)\d+|bool")  # dtypes of columns that can be read as float32


class LeRobotSource:
    """A LeRobot dataset in a folder.

    Attributes:
        folder: folder of the dataset. name: name of the folder or the repo.
        repo_id, revision: the repo and its commit; None for a folder.
        version: `codebase_version`.
        fps: frames a second; `rate` is the exact fraction.
        features: name -> LeRobot's description. tasks: task index -> instruction.
        episodes: the indices of all episodes, sorted; num_episodes: their number.
        own: whether `meta/aim.parquet` exists, which `export_lerobot` writes.

    A problem of a single episode raises an error when that episode is read. The error doesn't name the episode.

    Raises:
        OSError: if `meta/info.json` or other metadata are missing or damaged.
        ValueError: for another version of the format, or an inconsistent dataset.
    """

    def __init__(self, folder: Path, repo_id: str | None = None, revision: str | None = None) -> None:
        self.folder, self.repo_id, self.revision = folder, repo_id, revision
        self.name = repo_id.split("/")[1] if repo_id else os.path.basename(os.path.abspath(folder))
        if not (folder / format.INFO).is_file():
            raise FileNotFoundError(f"{folder} has no {format.INFO}; expected a LeRobot dataset or its repo id")
        self._info = read_json(folder / format.INFO, MEND)
        self.version = self._info.get("codebase_version")
        if self.version not in VERSIONS:
            raise ValueError(
                f"{self.name} has codebase_version {self.version}; expected one of {', '.join(VERSIONS)}. Convert it "
                "with LeRobot's own scripts"
            )
        described = self._entry("features", dict, "an object")
        self.features: dict[str, dict[str, Any]] = {
            name: feature for name, feature in described.items() if isinstance(feature, dict)
        }
        self.fps: float = self._entry("fps", (int, float), "a number of frames a second")
        if not 1e-3 <= self.fps <= 1e6:
            raise ValueError(f"{folder / format.INFO}: fps is {self.fps}, expected a positive number; mend it there")
        self.rate: Fraction = frame_rate(self.fps)
        splits = self._entry("splits", dict, "an object of ranges") if "splits" in self._info else {}
        self._splits = {name: self._span(name, span) for name, span in splits.items()}
        self.own = (folder / format.OURS).is_file()
        self._episodes = self._by_number(
            self._read_v3()
            if self.version == "v3.0"
            else read_json_lines(folder / format.EPISODES_V2, MEND, ("episode_index",))
        )
        self.tasks = self._read_tasks()
        self.episodes = list(self._episodes)
        self.num_episodes = len(self.episodes)

    @classmethod
    def open(cls, source: str, revision: str | None = None) -> "LeRobotSource":
        """Opens a folder, or downloads the metadata of a repo of the Hub; `fetch` downloads the rest.

        Raises:
            OSError, ValueError: as the class; if the repo can't be read; for a revision of a folder; for "".
        """
        path = check_path("the dataset", source)
        if path.exists() or source.count("/") != 1:
            if revision is not None:
                raise ValueError(
                    f"{source} is a folder, so there is no revision {revision} of it; leave --revision out"
                )
            return cls(path)
        folder = _snapshot(source, revision, ["meta/*"])
        return cls(folder, source, revision=folder.name)

    def fetch(self, episodes: list[int], cameras: list[str] | None = None) -> None:
        """Downloads the tables and the videos of `cameras` (default: all) of these episodes of a repo."""
        if self.repo_id is None:
            return
        if episodes == self.episodes:
            wanted = ["data/*", *(f"videos/*{key}/*" for key in self._video_keys(cameras))]
        else:
            wanted = [path.relative_to(self.folder).as_posix() for path in self.files(episodes, cameras)]
        _snapshot(self.repo_id, self.revision, ["meta/*", *wanted])

    def choose(
        self, episodes: list[str] | None = None, tasks: list[str] | None = None, skip: Iterable[int] = ()
    ) -> list[int]:
        """The indices of the chosen episodes, sorted; by default all.

        Args:
            episodes: indices such as "7" and ranges such as "0:50"; gaps in a range are ignored.
            tasks: instructions, exactly as in the dataset.
            skip: indices of episodes to leave out.

        Raises:
            ValueError: for unknown indices and instructions, or if no episode is left.
        """
        spans = {text: episode_range(text) for text in episodes or ()}
        for text, span in spans.items():
            if span is None or not any(number in span for number in self.episodes):
                raise ValueError(
                    f"{self.name} has no episode {text}; expected numbers or ranges such as 0:50, of its episodes "
                    f"{format_numbers(self.episodes)}"
                )
        chosen = {number for number in self.episodes if not spans or any(number in span for span in spans.values())}
        if tasks:
            tasks_of = {number: self._tasks_of(number) for number in self.episodes}
            known = sorted(set().union(*tasks_of.values()))
            if unknown := sorted(set(tasks) - set(known)):
                raise ValueError(f"{self.name} has no task {', '.join(map(repr, unknown))}; it has {known}")
            chosen = {number for number in chosen if set(tasks) & tasks_of[number]}
        if unknown := sorted(set(skip) - set(self.episodes)):
            raise ValueError(f"{self.name} has no episode {format_numbers(unknown)} to skip")
        if not chosen - set(skip):
            raise ValueError(f"{self.name}: no episode is left of {self.num_episodes}; choose others")
        return sorted(chosen - set(skip))

    def files(self, episodes: list[int], cameras: list[str] | None = None) -> list[Path]:
        """The files of tables and of the videos of `cameras` (default: all) of these episodes, except episodes with
        broken metadata."""
        found: dict[Path, None] = {}
        for episode in episodes:
            with suppress(ValueError):  # raised again when the episode is read
                found[self._data_path(episode)] = None
                found |= {self._video(episode, key)[0]: None for key in self._video_keys(cameras)}
        return list(found)

    def fingerprint(self, episodes: list[int], cameras: list[str] | None = None) -> str:
        """SHA-256 of the data imported from these episodes: metadata, tables, and the names and sizes of videos."""
        digest = hashlib.sha256()
        metadata = [path for path in files_in(self.folder / "meta") if not path.name.startswith(".")]
        for path in (*metadata, *sorted(self.files(episodes, cameras))):
            if not path.is_file():
                continue
            digest.update(f"{path.relative_to(self.folder).as_posix()} {path.stat().st_size} ".encode())
            if path.suffix != ".mp4":
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    # meta/info.json

    def _entry(self, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self._info.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(
                f"{self.folder / format.INFO}: {name} is {value!r}, expected {expected}; mend it there, or {MEND}"
            )
        return value

    def _span(self, name: str, text: Any) -> range:
        span = episode_range(str(text)) if ":" in str(text) else None
        if span is None:
            raise ValueError(
                f"{self.folder / format.INFO}: split {name} is {text!r}, expected a range of episodes such as '0:50'; "
                "mend it there"
            )
        return span

    @property
    def cameras(self) -> list[str]:
        return [name for name, feature in self.features.items() if feature.get("dtype") in ("video", "image")]

    def _video_keys(self, cameras: list[str] | None) -> list[str]:
        known = self.cameras if cameras is None else cameras
        return [key for key in known if self.features[key].get("dtype") == "video"]

    def _shape(self, name: str) -> list[int]:
        shape = self.features[name].get("shape")
        if not isinstance(shape, list) or not all(type(number) is int and number > 0 for number in shape):
            raise ValueError(
                f"{self.folder / format.INFO}: shape of {name} is {shape!r}, expected a list of positive numbers"
            )
        return shape

    def picture_size(self, key: str) -> tuple[int, int]:
        """(height, width) of a camera's pictures.

        Raises:
            ValueError: if there is no such camera, or its pictures haven't three channels.
        """
        if key not in self.cameras:
            raise ValueError(f"{self.name} has no camera {key}; it has {', '.join(self.cameras) or 'none'}")
        shape, names = self._shape(key), self.features[key].get("names")
        names = names if isinstance(names, list) else ["height", "width", "channels"]
        channel = [i for i, name in enumerate(names) if str(name).startswith("channel")]
        if len(shape) != 3 or len(channel) != 1 or shape[channel[0]] != 3:
            raise ValueError(f"{self.name}: {key} has shape {shape} ({names}); expected height, width and 3 channels")
        height, width = (number for i, number in enumerate(shape) if i != channel[0])
        return height, width

    def width(self, column: str) -> int:
        """The number of values per frame in a column.

        Raises:
            ValueError: if there is no such numeric column.
        """
        numbers = [name for name, feature in self.features.items() if NUMBERS.fullmatch(str(feature.get("dtype")))]
        if column not in numbers:
            raise ValueError(f"{self.name} has no column {column} of numbers; it has {', '.join(numbers)}")
        return math.prod(self._shape(column))

    def split(self, episode: int) -> str:
        """The split of an episode by `meta/info.json`; default: train."""
        return next((name for name, span in self._splits.items() if episode in span), "train")

    # Tables of frames

    def length(self, episode: int) -> int:
        """The number of frames of an episode, at least 2.

        Raises:
            ValueError: if it has fewer, or the metadata don't say how many.
        """
        length = self._number(episode, "length")
        if length < 2:
            raise ValueError(f"it has {length} frames, expected at least 2: an action leads from a frame to the next")
        return length

    def frames(self, episode: int, columns: list[str]) -> dict[str, np.ndarray]:
        """Numeric columns of one episode, (num_frames, width) float32 each, whose numbers may be NaN.

        Raises:
            OSError, ValueError: if the table is missing or damaged, or hasn't the expected frames.
        """
        table = self._table(episode, ["timestamp", *columns])
        times = finite("timestamp", _numbers(table, "timestamp", 1))[:, 0]
        late = np.abs(times - np.arange(len(times)) / float(self.rate)) > 0.5 / float(self.rate)
        if late.any():
            frame = int(late.argmax())
            raise ValueError(
                f"frame {frame} is at {times[frame]:g} s, but at {self.fps} frames a second it should be at "
                f"{frame / self.fps:g} s"
            )
        return {column: _numbers(table, column, self.width(column)) for column in columns}

    def instruction(self, episode: int) -> str:
        """The instruction of an episode, which is LeRobot's task.

        Raises:
            ValueError: if the task changes within the episode, isn't among the dataset's tasks, is no text there, or
                differs from the episode's metadata.
        """
        table = self._table(episode, ["task_index"])
        indices = set(finite("task_index", _numbers(table, "task_index", 1))[:, 0].astype(int).tolist())
        instructions = [self.tasks.get(index) for index in indices]
        if not all(isinstance(words, str) and words.strip() and not SURROGATE.search(words) for words in instructions):
            raise ValueError(
                f"its task_index is {', '.join(map(str, indices))}, but the dataset's tasks are {self.tasks}; add it "
                "to them in words, without halves of a character, or give the instruction in the config"
            )
        if len(instructions) != 1:
            raise ValueError(f"its task changes ({sorted(instructions)}); expected one an episode")
        told = self._episodes[episode].get("tasks")
        if isinstance(told, list) and told and instructions[0] not in told:
            raise ValueError(
                f"its task_index means {instructions[0]!r}, but its metadata say {told}; correct one of them, or give "
                "the instruction in the config"
            )
        return instructions[0]

    def _tasks_of(self, episode: int) -> set[str]:
        """The tasks of an episode by its metadata."""
        tasks = self._episodes[episode].get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise ValueError(f"{self.name}, episode {episode}: its metadata name no tasks; choose episodes by number")
        return set(tasks)

    def succeeded(self, episode: int) -> bool:
        """Whether `next.success` is true in some frame. Episodes without that column count as successful."""
        if "next.success" not in self.features:
            return True
        table = self._table(episode, ["next.success"])
        return bool(finite("next.success", _numbers(table, "next.success", 1)).any())

    def own_row(self, episode: int) -> dict[str, Any]:
        """The row of an episode in `meta/aim.parquet`."""
        path = self.folder / format.OURS
        with reading(path, "export the dataset again"):
            group = pq.ParquetFile(path).read_row_group(self.episodes.index(episode))
            schema = format.own_features().arrow_schema
            if "intervention" not in group.column_names:  # exported by aim-hf 0.1
                group = group.append_column("intervention", pa.nulls(1, pa.int32()))
            return group.select(schema.names).cast(schema).to_pylist()[0]

    def own_keys(self) -> dict[int, tuple[str, str, str, int]]:
        """Episode -> suite, task, split and seed of its row of `meta/aim.parquet`."""
        path = self.folder / format.OURS
        with reading(path, "export the dataset again, or delete that file and import it as any other"):
            rows = pq.read_table(path, columns=list(KEY)).to_pylist()
            keys = [tuple(row[name] for name in KEY) for row in rows]
            if len(keys) != self.num_episodes:
                raise ValueError(f"it has {len(keys)} rows for {self.num_episodes} episodes")
        return dict(zip(self.episodes, keys))

    def _table(self, episode: int, columns: list[str]) -> pa.Table:
        path, length = self._data_path(episode), self.length(episode)
        with reading(path, MEND):
            missing = {*columns, "frame_index", "episode_index"} - set(pq.read_schema(path).names)
            if missing:
                raise ValueError(f"it has no column {', '.join(sorted(missing))}")
            filters = [("episode_index", "=", episode)]  # reads only the row groups of this episode
            wanted = list(dict.fromkeys([*columns, "frame_index"]))  # of which some may be asked for twice
            table = pq.read_table(path, columns=wanted, filters=filters, partitioning=None)
            table = table.take(pc.sort_indices(table["frame_index"]))
        if len(table) != length or table["frame_index"].to_pylist() != list(range(len(table))):
            raise ValueError(
                f"{path} has {table.num_rows} frames of it, expected {length}, numbered from 0, as the episode's "
                "metadata say"
            )
        return table

    # Pictures

    def clip(self, episode: int, key: str, every: int = 1, gray: bool = False) -> bytes:
        """A camera's pictures in one episode, as the bytes of a video file: copied if possible, otherwise decoded and
        encoded again.

        Args:
            every: stride between pictures that are kept, from the first one on.
            gray: whether the pictures are gray, for encoding them again.

        Raises:
            OSError, ValueError: if the video is missing or damaged, or lacks frames.
        """
        rate, count = float(self.rate / every), self.length(episode)
        if self.features[key]["dtype"] == "image":
            with reading(f"{key} in its table", MEND):
                pictures = [rgb_pixels(image) for image in self._images(episode, key)[::every]]
            return encode_video(np.stack(pictures), rate, gray)
        path, first = self._video(episode, key)
        clip = cut_clip(path, first, count, self.rate) if every == 1 else None
        if clip is None:
            with reading(path, MEND):
                times = clip_times(path, first, count, self.rate)[::every]
                pixels = VideoDecoder(str(path)).get_frames_played_at(times).data
            clip = encode_video(pixels.permute(0, 2, 3, 1).numpy(), rate, gray)
        return clip

    def check_pictures(self, episode: int, key: str) -> None:
        """Checks without decoding that `clip` can read a camera, and that pictures are of `picture_size`.

        Raises:
            OSError, ValueError: otherwise; names the file, its content and the expectation.
        """
        if self.features[key]["dtype"] == "image":
            self._images(episode, key)
            return
        path, first = self._video(episode, key)
        self._check_size(check_clip(path, first, self.length(episode), self.rate), key, str(path))

    def _check_size(self, size: tuple[int, int], key: str, where: str) -> None:
        if size != self.picture_size(key):
            raise ValueError(
                f"{where} has pictures of {size} (height, width), expected {self.picture_size(key)}, as {format.INFO} "
                f"says of {key}; mend one of them"
            )

    def _images(self, episode: int, key: str) -> list[Image.Image]:
        """The pictures of a column, opened but not decoded."""
        pictures: list[Image.Image] = []
        for frame, stored in enumerate(self._table(episode, [key])[key].to_pylist()):
            where = f"{key} of frame {frame}"
            if not isinstance(stored, dict) or not isinstance(stored.get("bytes"), bytes):
                raise ValueError(f"{where} is {str(stored)[:80]}, expected a picture's bytes inside the table")
            with reading(where, MEND):
                pictures.append(Image.open(io.BytesIO(stored["bytes"])))
                check_bits(pictures[-1])
            self._check_size(pictures[-1].size[::-1], key, where)
        return pictures

    # Paths

    def _number(self, episode: int, name: str, kind: type | tuple[type, ...] = int) -> Any:
        value = self._episodes[episode].get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or not abs(value) < 1e15:
            raise ValueError(f"{name} in its metadata is {value!r}, expected a number; {MEND}")
        return value

    def _path(self, entry: str, **where: int | str) -> Path:
        pattern = self._entry(entry, str, "a path with placeholders")
        expected = f"expected a path whose placeholders are among {', '.join(where)}; mend it there"
        with reading(f"{entry} {pattern!r} in {self.folder / format.INFO}", expected):
            return self.folder / pattern.format(**where)

    def _data_path(self, episode: int) -> Path:
        return self._path("data_path", **self._where(episode, "data"))

    def _video(self, episode: int, key: str) -> tuple[Path, int]:
        """The file of an episode's video, and the index of its first frame there."""
        place = f"videos/{key}"
        path = self._path("video_path", video_key=key, **self._where(episode, place))
        if self.version != "v3.0":
            return path, 0
        return path, round(self._number(episode, f"{place}/from_timestamp", (int, float)) * self.rate)

    def _where(self, episode: int, place: str) -> dict[str, int]:
        """The values of a path's placeholders; in v3.0 they are the metadata columns that begin with `place`."""
        if self.version == "v3.0":
            return {name: self._number(episode, f"{place}/{name}") for name in ("chunk_index", "file_index")}
        size = self._entry("chunks_size", int, "a number of episodes")
        return {"episode_index": episode, "episode_chunk": episode // max(size, 1)}

    # Metadata of the episodes

    def _read_v3(self) -> list[dict[str, Any]]:
        paths = sorted(self.folder.glob("meta/episodes/*/[!.]*.parquet"))  # macOS leaves hidden files in copies
        if not paths:
            raise FileNotFoundError(f"{self.folder} has no meta/episodes/*/*.parquet; {MEND}")
        records: list[dict[str, Any]] = []
        for path in paths:
            with reading(path, MEND):
                columns = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
                records += pq.read_table(path, columns=columns, partitioning=None).to_pylist()
        return records

    def _read_tasks(self) -> dict[int, str]:
        path = self.folder / (format.TASKS if self.version == "v3.0" else format.TASKS_V2)
        with reading(path, MEND):
            if self.version != "v3.0":
                records = read_json_lines(path, MEND, ("task_index", "task"))
                listed = [(record["task_index"], record["task"]) for record in records]
            else:
                table = pq.read_table(path, partitioning=None).to_pydict()
                # The index of a data frame, which is named since lerobot 0.4.
                words = "task" if "task" in table else "__index_level_0__"
                if missing := [name for name in ("task_index", words) if name not in table]:
                    raise ValueError(f"it has no {', '.join(missing)}, but {', '.join(table)}")
                listed = zip(table["task_index"], table[words])
            tasks: dict[int, str] = {}
            for index, task in listed:
                if tasks.setdefault(index, task) != task:
                    raise ValueError(f"task_index {index} is both {tasks[index]!r} and {task!r}")
            return tasks

    def _by_number(self, records: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        episodes: dict[int, dict[str, Any]] = {}
        for row, record in enumerate(records):
            number = record.get("episode_index")
            if type(number) is not int or number < 0 or number in episodes:
                raise ValueError(
                    f"{self.name}: row {row} of its list of episodes has episode_index {number!r}, expected a number "
                    f"that no other row has; {MEND}"
                )
            episodes[number] = record
        total = self._entry("total_episodes", int, "a number of episodes")
        if len(episodes) != total:
            raise ValueError(
                f"{self.name} lists {len(episodes)} episodes, but total_episodes in {format.INFO} is {total}; {MEND}, "
                "or mend that number if episodes were deleted"
            )
        return dict(sorted(episodes.items()))


def episode_range(text: str) -> range | None:
    """The range of "7" or "0:50", as in Python; "50:" has no end. None for any other text."""
    match = re.fullmatch(r"(\d+)|(\d*):(\d*)", text)
    if match is None:
        return None
    one, first, last = match.groups()
    return range(int(one), int(one) + 1) if one else range(int(first or 0), int(last or sys.maxsize))


def format_numbers(numbers: list[int]) -> str:
    """Sorted numbers as "0:3, 5, 7:9", which `episode_range` reads."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return ", ".join(str(first) if last == first + 1 else f"{first}:{last}" for first, last in runs)


def _numbers(table: pa.Table, column: str, width: int) -> np.ndarray:
    """A column (num_frames, width) float32.

    Raises:
        ValueError: if it isn't numeric, or hasn't `width` values per frame.
    """
    values = table[column].combine_chunks()
    if isinstance(values, pa.ExtensionArray):  # the type that `datasets` stores matrices as
        values = values.storage
    while isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1:
            raise ValueError(f"{column} holds lists of {' and '.join(map(str, lengths))} numbers, expected {width}")
        values = values.flatten()
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if not (is_number or pa.types.is_boolean(values.type)) or values.null_count:
        raise ValueError(f"{column} holds {values.type} and {values.null_count} times nothing, expected numbers")
    if len(values) != len(table) * width:
        raise ValueError(f"{column} holds {len(values)} numbers in {len(table)} frames, expected {width} in each")
    return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(table), width)


def finite(name: str, numbers: np.ndarray) -> np.ndarray:
    """`numbers` (num_frames, width). Raises ValueError, with `name` and the frame, for NaN or infinity."""
    if not np.isfinite(numbers).all():
        frame = int(np.argmin(np.isfinite(numbers).all(axis=1)))
        raise ValueError(f"{name} holds NaN or infinity at frame {frame}; repair it, or leave the episode out")
    return numbers


def _snapshot(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    with reading_repo(repo_id, revision):
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=patterns))
