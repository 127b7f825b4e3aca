"""A folder of episodes: Parquet shards that plain `datasets.load_dataset(folder)` reads, and that no kill can spoil.

    folder/README.md                            the dataset card, whose YAML names the splits
    folder/data/easy-click_bell-00000.parquet   episodes, videos embedded, ordered by seed
    folder/manifest/easy-click_bell-00000.json  how they were made, and what became of each seed tried
    folder/.unfinished/easy-click_bell-00000/   episodes of a shard that is being made, a file each

Every file is written under a hidden temporary name and renamed, so that one with its final name is whole. An episode
is a row group of its own: reading one costs no more than its bytes.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, load_dataset

from ..files import write_text, written_file
from .episodes import EE_ACTION_DIM, check_row, check_videos, episode_features

KEY = ("suite", "task", "split", "seed")  # what tells episodes apart
UNFINISHED = ".unfinished"
MEND = "delete it and run dataset_scripts/collect.py again, which makes what is missing"


# Writing


def write_rows(path: Path, rows: Iterator[dict] | list[dict], action_dim: int) -> None:
    """Write rows to one Parquet file, a row group each."""
    schema = episode_features(action_dim).arrow_schema
    write_tables(path, (pa.Table.from_pylist([_plain(row)], schema=schema) for row in rows), schema)


def write_tables(path: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    with written_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _plain(value):
    """A row with lists for arrays, which is what Arrow makes fixed-size lists from."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


@dataclass
class ShardWriter:
    """Makes one shard episode by episode, each safe once `add` or `reject` has returned.

    writer = ShardWriter(folder, "easy", "click_bell", 0)
    writer.tried                  # seed -> None for what is recorded already, or the reason of its failure
    writer.add(row)
    writer.reject(seed, reason)
    writer.finish(provenance)     # the shard and its manifest are there, the pieces gone
    """

    folder: Path
    split: str
    task: str
    index: int
    tried: dict[int, str | None] = field(init=False)

    def __post_init__(self):
        self._pieces = self.folder / UNFINISHED / self.path.stem
        self.tried = {}
        for piece in sorted(self._pieces.glob("[0-9]*")):
            self.tried[int(piece.stem)] = None if piece.suffix == ".parquet" else piece.read_text()

    @property
    def path(self) -> Path:
        return self.folder / "data" / f"{self.split}-{self.task}-{self.index:05d}.parquet"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest" / f"{self.path.stem}.json"

    @property
    def num_episodes(self) -> int:
        return sum(reason is None for reason in self.tried.values())

    def is_done(self, episodes: int) -> bool:
        """Whether the shard is there with so many episodes. One that an earlier run wanted shorter is made again."""
        return self.path.exists() and pq.read_metadata(self.path).num_rows == episodes

    def add(self, row: dict) -> None:
        write_rows(self._piece(row["seed"], "parquet"), [row], len(row["action"][0]))
        self.tried[row["seed"]] = None

    def reject(self, seed: int, reason: str) -> None:
        write_text(self._piece(seed, "txt"), reason)
        self.tried[seed] = reason

    def finish(self, provenance: dict) -> None:
        """Joins the pieces, in the order of their seeds. `provenance` is what the manifest holds beside the seeds."""
        recorded = [self._piece(seed, "parquet") for seed, reason in sorted(self.tried.items()) if reason is None]
        seeds = [
            {"seed": seed, "outcome": "recorded"} | ({} if reason is None else {"outcome": "failed", "reason": reason})
            for seed, reason in sorted(self.tried.items())
        ]
        head = json.dumps(provenance, indent=1)[:-2]  # a line a seed reads and compares better than JSON's own layout
        lines = ",\n  ".join(json.dumps(seed) for seed in seeds)
        write_text(self.manifest, f'{head},\n "seeds": [\n  {lines}\n ]\n}}\n')
        write_tables(self.path, map(pq.read_table, recorded), pq.read_schema(recorded[0]))
        self.remove_pieces()

    def remove_pieces(self) -> None:
        """What a kill between the last two steps of `finish` leaves behind."""
        shutil.rmtree(self._pieces, ignore_errors=True)
        with suppress(OSError):  # others are still at work there, or nobody ever was
            self._pieces.parent.rmdir()

    def _piece(self, seed: int, suffix: str) -> Path:
        return self._pieces / f"{seed:012d}.{suffix}"


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of writers that were killed; no writer may be at work."""
    for place in (folder, folder / "data", folder / "manifest", *folder.glob(f"{UNFINISHED}/*")):
        for path in place.glob(".*.*"):
            if path.suffix[1:].isdigit():  # the writer's process id
                path.unlink()


# Reading


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder, in order.

    Raises:
        FileNotFoundError: if there is none.
    """
    paths = sorted(folder.glob("data/*.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no data/*.parquet; expected a folder made by dataset_scripts/collect.py, or a repo id"
        )
    return paths


def check_folder(folder: Path) -> Features:
    """The columns that all shards share. Reads what tells episodes apart, and no video.

    Raises:
        FileNotFoundError: if the folder holds no shard.
        ValueError: if a shard is damaged, half-written, foreign or unsorted, or an episode is there twice: names the
            file, what was expected, and the mend.
    """
    seen: dict[tuple, Path] = {}
    dims: dict[int, Path] = {}
    for path in shard_paths(folder):
        try:
            schema = pq.read_schema(path)
            dims.setdefault(check_schema(schema, str(path)), path)
            table = pq.read_table(path, columns=list(KEY))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no whole Parquet file ({error}); {MEND}") from error
        keys = list(zip(*(table[name].to_pylist() for name in KEY)))
        for key, following in zip(keys, [*keys[1:], None]):
            if key in seen:
                raise ValueError(f"{path}: episode {key} is in {seen[key]} too; delete one of the two shards")
            seen[key] = path
            if following is not None and key > following:
                raise ValueError(f"{path}: episode {key} comes before {following}, expected them in order; {MEND}")
    if len(dims) > 1:
        raise ValueError(
            f"{folder} mixes actions of {' and '.join(f'{dim} numbers ({path.name})' for dim, path in dims.items())}; "
            "keep them in folders of their own"
        )
    return episode_features(next(iter(dims)))


def load_episodes(source: str | Path) -> Dataset:
    """All episodes of a folder, or of a repo on the Hub, as one Dataset, whatever their split (a column).

    A folder is checked first by `check_folder`; what it raises, and ValueError for a repo of other data.
    `dataset_scripts/validate.py` checks every row.
    """
    folder = Path(source)
    if not folder.exists() and str(source).count("/") == 1:
        splits = load_dataset(str(source))
        dataset = load_dataset(str(source), split="+".join(splits))
        check_schema(dataset.features.arrow_schema, str(source))
        return dataset
    features = check_folder(folder)
    files = [str(path) for path in shard_paths(folder)]
    return load_dataset("parquet", data_files=files, split="train", features=features)


def read_rows(path: Path) -> Iterator[dict]:
    """The rows of one shard with videos as bytes, each checked.

    Raises:
        ValueError: naming the file, the row, what was expected, and the mend.
    """
    try:
        file = pq.ParquetFile(path)
        check_schema(file.schema_arrow, str(path))
        groups = (file.read_row_group(index).to_pylist() for index in range(file.num_row_groups))
        for index, row in enumerate(row for group in groups for row in group):
            where = f"{path}, row {index}"
            check_row(row, where)
            check_videos(row, where)
            yield row
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file ({error}); {MEND}") from error


def check_schema(schema: pa.Schema, where: str) -> int:
    """The number of an action's numbers. Refuses columns other than those of `episode_features`.

    Raises:
        ValueError: naming `where` and each column that is missing, unknown or of another type.
    """
    found = {field.name: field.type for field in schema}
    action = found.get("action")
    is_vectors = action is not None and pa.types.is_list(action) and pa.types.is_fixed_size_list(action.value_type)
    dim = action.value_type.list_size if is_vectors else EE_ACTION_DIM
    expected = {field.name: field.type for field in episode_features(dim).arrow_schema}
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in expected]
    wrong += [
        f"{name} is {found[name]}, expected {type_}"
        for name, type_ in expected.items()
        if name in found and found[name] != type_
    ]
    if wrong:
        raise ValueError(
            f"{where} is no shard of AIM episodes: {'; '.join(wrong)}. Make it with dataset_scripts/collect.py"
        )
    return dim
