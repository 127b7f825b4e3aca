"""Reads LeRobot datasets of v3.0 and v2.1: tables with pyarrow, videos as compressed clips.

v3.0 keeps many episodes in a file, v2.1 a file for each; `LeRobotSource` hides that. Only the columns and cameras that
are asked for are read, or fetched from the Hub.
"""

import io
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from PIL import Image
from torchcodec.decoders import VideoDecoder

from ..video import decode_video, encode_video
from . import format
from .clips import cut_clip, frame_rate

VERSIONS = ("v2.1", "v3.0")


class LeRobotSource:
    """A LeRobot dataset in a folder.

    Attributes:
        folder: the dataset's. name: its last part, or the repo's.
        fps: frames a second; `rate` is the exact fraction behind it.
        features: name -> LeRobot's description.
        num_episodes: how many there are.
        own: whether `meta/aim.parquet` is there: then the dataset was exported by us.

    Raises:
        FileNotFoundError: if the folder has no `meta/info.json`, or lacks a file that it speaks of.
        ValueError: for another version of the format, or a dataset whose parts don't fit together.
    """

    def __init__(self, folder: Path, name: str | None = None):
        self.folder, self.name = folder, name or folder.name
        if not (folder / format.INFO).is_file():
            raise FileNotFoundError(f"{folder} has no {format.INFO}; expected a LeRobot dataset or its repo id")
        self._info = json.loads((folder / format.INFO).read_text())
        self.version = self._info.get("codebase_version")
        if self.version not in VERSIONS:
            raise ValueError(
                f"{self.name} has codebase_version {self.version}; expected {' or '.join(VERSIONS)}. Convert it with "
                "LeRobot's own scripts"
            )
        self.features: dict[str, dict] = self._info["features"]
        self.fps: float = self._info["fps"]
        self.rate: Fraction = frame_rate(self.fps)
        self.own = (folder / format.OURS).is_file()
        self._episodes, self._tasks = self._read_v3() if self.version == "v3.0" else self._read_v2()
        self.num_episodes = len(self._episodes)

    @classmethod
    def open(cls, source: str, video_keys: list[str] | None = None) -> "LeRobotSource":
        """A folder, or a repo of the Hub, of which only the tables and `video_keys` (all without) are fetched."""
        if Path(source).exists() or source.count("/") != 1:
            return cls(Path(source))
        videos = ["videos/*"] if video_keys is None else [f"videos/*{key}/*" for key in video_keys]
        folder = snapshot_download(source, repo_type="dataset", allow_patterns=["meta/*", "data/*", *videos])
        return cls(Path(folder), source.split("/")[1])

    @property
    def cameras(self) -> list[str]:
        return [name for name, feature in self.features.items() if feature["dtype"] in ("video", "image")]

    def picture_size(self, key: str) -> tuple[int, int]:
        """(height, width) of a camera's pictures.

        Raises:
            ValueError: if there is no such camera, or it has no three colors.
        """
        if key not in self.cameras:
            raise ValueError(f"{self.name} has no camera {key}; it has {', '.join(self.cameras) or 'none'}")
        feature = self.features[key]
        shape, names = list(feature["shape"]), feature["names"] or ["height", "width", "channels"]
        channel = [i for i, name in enumerate(names) if name.startswith("channel")]
        if len(shape) != 3 or len(channel) != 1 or shape[channel[0]] != 3:
            raise ValueError(f"{self.name}: {key} has shape {shape} ({names}); expected height, width and 3 channels")
        height, width = (number for i, number in enumerate(shape) if i != channel[0])
        return height, width

    def width(self, column: str) -> int:
        """How many numbers a column of the frames' table has.

        Raises:
            ValueError: if there is no such column of numbers.
        """
        numbers = {n: f for n, f in self.features.items() if f["dtype"] not in ("video", "image", "string")}
        if column not in numbers:
            raise ValueError(f"{self.name} has no column {column}; it has {', '.join(numbers)}")
        return int(np.prod(numbers[column]["shape"]))

    def split(self, episode: int) -> str:
        """The name of the split that `meta/info.json` puts an episode in."""
        for name, span in self._info.get("splits", {}).items():
            first, last = (int(end) for end in span.split(":"))
            if first <= episode < last:
                return name
        return "train"

    def length(self, episode: int) -> int:
        return self._episodes[episode]["length"]

    # The frames' table

    def frames(self, episode: int, columns: list[str]) -> dict[str, np.ndarray]:
        """Columns of numbers of one episode, (num_frames, width) float32 each.

        Raises:
            FileNotFoundError, ValueError: if the table is missing, or doesn't hold the frames that it should.
        """
        table = self._table(episode, ["timestamp", *columns])
        times = table["timestamp"].to_numpy()
        late = np.abs(times - np.arange(len(times)) / float(self.rate)) > 0.5 / float(self.rate)
        if late.any():
            frame = int(late.argmax())
            raise ValueError(
                f"{self.name}, episode {episode}: frame {frame} is at {times[frame]:g} s, but at {self.fps} frames a "
                f"second it should be at {frame / self.fps:g} s"
            )
        read = {}
        for column in columns:
            values = table[column].combine_chunks()
            while isinstance(values, (pa.ListArray, pa.FixedSizeListArray)):
                values = values.flatten()
            values = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(times), self.width(column))
            if not np.isfinite(values).all():
                frame = int(np.argmin(np.isfinite(values).all(axis=1)))
                raise ValueError(
                    f"{self.name}, episode {episode}: {column} holds NaN or infinity at frame {frame}; repair it, or "
                    "leave the episode out"
                )
            read[column] = values
        return read

    def instruction(self, episode: int) -> str:
        """What the robot is told: LeRobot's task.

        Raises:
            ValueError: if it changes within the episode.
        """
        indices = set(self._table(episode, ["task_index"])["task_index"].to_pylist())
        if len(indices) != 1:
            tasks = [self._tasks[index] for index in sorted(indices)]
            raise ValueError(f"{self.name}, episode {episode}: its task changes ({tasks}); expected one an episode")
        return self._tasks[indices.pop()]

    def succeeded(self, episode: int) -> bool:
        """Whether `next.success` says so in some frame; what was demonstrated succeeds where nobody says."""
        if "next.success" not in self.features:
            return True
        return bool(np.any(self._table(episode, ["next.success"])["next.success"].to_numpy(zero_copy_only=False)))

    def own_row(self, episode: int) -> dict:
        """The row of `meta/aim.parquet`."""
        return pq.ParquetFile(self.folder / format.OURS).read_row_group(episode).to_pylist()[0]

    def own_keys(self) -> list[dict]:
        """`split`, `task` and `seed` of each row of `meta/aim.parquet`."""
        keys = pq.read_table(self.folder / format.OURS, columns=["split", "task", "seed"]).to_pylist()
        if len(keys) != self.num_episodes:
            raise ValueError(
                f"{self.name}: {format.OURS} has {len(keys)} rows for {self.num_episodes} episodes; export it "
                "again, or delete that file and import it as any other dataset"
            )
        return keys

    def _table(self, episode: int, columns: list[str]) -> pa.Table:
        path = self._present(self._data_path(episode))
        filters = [("episode_index", "=", episode)]  # an episode is a row group: no other one is read
        try:
            table = pq.read_table(path, columns=[*columns, "frame_index"], filters=filters)
        except pa.ArrowException as error:
            raise ValueError(f"{path} can't be read ({error}); download or record it again") from error
        table = table.take(pc.sort_indices(table["frame_index"]))
        length = self.length(episode)
        if table["frame_index"].to_pylist() != list(range(length)):
            raise ValueError(
                f"{path}: episode {episode} has {table.num_rows} frames, expected {length}, numbered from 0, as the "
                "episode's metadata says"
            )
        return table

    # Pictures

    def clip(self, episode: int, key: str) -> bytes:
        """A camera's pictures in one episode, as the bytes of a video file: copied where that can be, otherwise
        decoded and encoded again.

        Raises:
            FileNotFoundError, ValueError: if the video is missing, or has not a picture for each frame.
        """
        if self.features[key]["dtype"] == "image":
            return encode_video(self._images(episode, key), float(self.rate))
        path, first = self._video(episode, key)
        count = self.length(episode)
        clip = cut_clip(self._present(path), first, count, self.rate)
        if clip is None:
            frames = decode_video(VideoDecoder(str(path)), list(range(first, first + count)))
            clip = encode_video(frames, float(self.rate))
        return clip

    def _images(self, episode: int, key: str) -> np.ndarray:
        pictures = []
        for image in self._table(episode, [key])[key].to_pylist():
            if image["bytes"] is None:
                raise ValueError(f"{self.name}, episode {episode}: {key} is a path, {image['path']}, and no picture")
            pictures.append(np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")))
        return np.stack(pictures)

    # Where things are

    def _present(self, path: Path) -> Path:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, but {format.INFO} speaks of it; download the dataset again")
        return path

    def _data_path(self, episode: int) -> Path:
        record = self._episodes[episode]
        if self.version == "v3.0":
            where = {"chunk_index": record["data/chunk_index"], "file_index": record["data/file_index"]}
        else:
            where = {"episode_index": episode, "episode_chunk": episode // self._info["chunks_size"]}
        return self.folder / self._info["data_path"].format(**where)

    def _video(self, episode: int, key: str) -> tuple[Path, int]:
        """The file that holds an episode's video, and its first frame there."""
        record, first = self._episodes[episode], 0
        if self.version == "v3.0":
            where = {name: record[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
            first = round(record[f"videos/{key}/from_timestamp"] * self.rate)
        else:
            where = {"episode_index": episode, "episode_chunk": episode // self._info["chunks_size"]}
        return self.folder / self._info["video_path"].format(video_key=key, **where), first

    def _read_v3(self) -> tuple[list[dict], dict[int, str]]:
        paths = sorted(self.folder.glob("meta/episodes/*/*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{self.folder} has no meta/episodes/*/*.parquet; download the dataset again")
        records = []
        for path in paths:
            columns = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
            records += pq.read_table(path, columns=columns).to_pylist()
        tasks = pq.read_table(self._present(self.folder / format.TASKS)).to_pydict()
        (words,) = (values for name, values in tasks.items() if name != "task_index")  # the index of a data frame
        return self._in_order(records), dict(zip(tasks["task_index"], words))

    def _read_v2(self) -> tuple[list[dict], dict[int, str]]:
        def lines(name: str) -> list[dict]:
            return [json.loads(line) for line in self._present(self.folder / name).read_text().splitlines() if line]

        tasks = {record["task_index"]: record["task"] for record in lines("meta/tasks.jsonl")}
        return self._in_order(lines("meta/episodes.jsonl")), tasks

    def _in_order(self, records: list[dict]) -> list[dict]:
        records = sorted(records, key=lambda record: record["episode_index"])
        if [record["episode_index"] for record in records] != list(range(self._info["total_episodes"])):
            raise ValueError(
                f"{self.name} lists {len(records)} episodes, but total_episodes is {self._info['total_episodes']}; "
                "download the dataset again"
            )
        return records
