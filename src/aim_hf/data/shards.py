"""A folder of episodes: Parquet shards for `datasets.load_dataset(folder)`, written so that a kill damages none.

    folder/README.md                            dataset card, whose YAML names the splits
    folder/data/easy-click_bell-00000.parquet   episodes with embedded videos, sorted by seed
    folder/manifest/easy-click_bell-00000.json  how they were made, and the outcome of each seed
    folder/.unfinished/easy-click_bell-00000/   episodes of an unfinished shard, one file each

Every file is written under a hidden temporary name and renamed, so that a file with its final name is complete. Each
episode is one row group, so that reading an episode reads only its bytes.
"""

import glob
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HTTPError

from ..model.actions import EE_ACTION_DIM
from ..utils.checks import check_path
from ..utils.extras import extra
from ..utils.files import UnreadableFile, read_json, reading, write_text, written_file
from ..utils.plain import plain
from .episodes import VIDEO_COLUMNS, check_row, check_videos, episode_features

with extra("data"):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Features, Value, Video, config, load_dataset
    from datasets.exceptions import DatasetGenerationError

KEY = ("suite", "task", "split", "seed")  # identifies an episode
UNFINISHED = ".unfinished"
# Files that a resumed command takes up or replaces, for `files.claim`. A user's own README.md must not be lost.
OUTPUTS = ("data/*.parquet", UNFINISHED, "README.md")
RATES, SPACES = "control rates of {:g} frames a second", "actions of space {}"
MEND = "delete it and run the command that made it again, which makes the missing episodes"
MANIFEST_MEND = "delete it and its shard, and run the command that made them again"


# Writing


def write_rows(path: Path, rows: Iterable[dict[str, Any]], action_dim: int) -> None:
    """Writes rows to a Parquet file, one row group each."""
    schema = episode_features(action_dim).arrow_schema
    write_tables(path, (pa.Table.from_pylist([plain(row)], schema=schema) for row in rows), schema)


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with written_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table)


@dataclass
class ShardWriter:
    """Writes one shard, episode by episode. Each is saved when `add` or `reject` returns.

    writer = ShardWriter(folder, "easy", "click_bell", 0)
    writer.tried                  # seed -> None if it is recorded, or the reason of its failure
    writer.add(row)
    writer.reject(seed, reason)   # mendable=True: a later writer tries the seed again
    writer.finish(provenance)     # writes the shard and its manifest, removes the pieces
    """

    folder: Path
    split: str
    task: str
    index: int
    tried: dict[int, str | None] = field(init=False)
    mendable: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._pieces = self.folder / UNFINISHED / self.path.stem
        self.tried = {}
        for piece in sorted(self._pieces.glob("[0-9]*")):
            self.tried[int(piece.stem)] = None if piece.suffix == ".parquet" else piece.read_text(encoding="utf-8")

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
        """Whether the shard exists with at least `episodes` episodes. A shorter shard is written again.

        Raises:
            UnreadableFile: if the shard is damaged.
        """
        if not self.path.exists():
            return False
        with reading(self.path, MEND):
            return pq.read_metadata(self.path).num_rows >= episodes

    def reopened(self) -> bool:
        """Whether the finished shard has seeds that are to be tried again. It is then in pieces, without these."""
        seeds = (read_manifest(self.folder, self.path) or {"seeds": []})["seeds"]
        if not any(seed.get("mendable") for seed in seeds):
            return False
        for seed in seeds:
            if seed["outcome"] == "failed" and not seed.get("mendable"):
                self.reject(seed["seed"], seed["reason"])
        with reading(self.path, MEND):
            rows = pq.read_table(self.path).to_pylist()
        for row in rows:
            self.add(row)
        return True

    def add(self, row: dict[str, Any]) -> None:
        write_rows(self._piece(row["seed"], "parquet"), [row], len(row["action"][0]))
        self.tried[row["seed"]] = None

    def reject(self, seed: int, reason: str, mendable: bool = False) -> None:
        if mendable:
            self.mendable.add(seed)
        else:
            write_text(self._piece(seed, "txt"), reason)
        self.tried[seed] = reason

    def finish(self, provenance: dict[str, Any]) -> None:
        """Joins the pieces in the order of their seeds. `provenance`: the manifest's entries besides the seeds.

        Raises:
            UnreadableFile: if a piece is damaged, as after a power failure.
        """
        recorded = [self._piece(seed, "parquet") for seed, reason in sorted(self.tried.items()) if reason is None]
        for piece in recorded:
            with reading(piece, MEND):
                schema = pq.read_schema(piece)
        seeds = [
            {"seed": seed, "outcome": "recorded"}
            | ({} if reason is None else {"outcome": "failed", "reason": reason})
            | ({"mendable": True} if seed in self.mendable else {})
            for seed, reason in sorted(self.tried.items())
        ]
        head = json.dumps(provenance, indent=1)[:-2]  # one line per seed is easier to read and to diff
        lines = ",\n  ".join(json.dumps(seed) for seed in seeds)
        write_text(self.manifest, f'{head},\n "seeds": [\n  {lines}\n ]\n}}\n')
        write_tables(self.path, map(pq.read_table, recorded), schema)
        self.remove_pieces()

    def remove_pieces(self) -> None:
        """Removes the pieces, which also remain if `finish` was killed before its last step."""
        shutil.rmtree(self._pieces, ignore_errors=True)
        with suppress(OSError):  # other shards are unfinished, or the folder doesn't exist
            self._pieces.parent.rmdir()

    def _piece(self, seed: int, suffix: str) -> Path:
        return self._pieces / f"{seed:012d}.{suffix}"


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of killed writers. No writer may be running."""
    for place in (folder, folder / "data", folder / "manifest", *folder.glob(f"{UNFINISHED}/*")):
        for path in place.glob(".*.*"):
            if path.suffix[1:].isdigit():  # the writer's process id
                path.unlink()


# Reading


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder, sorted.

    Raises:
        FileNotFoundError: if there is no shard.
    """
    paths = sorted(folder.glob("data/[!.]*.parquet"))  # macOS leaves hidden files in copies
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no data/*.parquet; expected a folder made by `aim-hf collect`, or a repo id"
        )
    return paths


def check_folder(folder: Path) -> Features:
    """Checks the shards of a folder and returns the columns that all share. No video is read.

    Raises:
        FileNotFoundError: if the folder holds no shard.
        ValueError: if a shard is damaged, incomplete, of other data or unsorted, an episode occurs twice, or episodes
            have different control rates, action spaces or action sizes. Names the file, the expectation and the
            remedy.
    """
    seen: dict[tuple, Path] = {}
    dims: dict[int, Path] = {}
    rates: dict[float, Path] = {}
    spaces: dict[str, Path] = {}
    for path in shard_paths(folder):
        with reading(path, MEND):
            schema = pq.read_schema(path)
        dims.setdefault(check_schema(schema, str(path)), path)
        with reading(path, MEND):
            table = pq.read_table(path, columns=[*KEY, "instruction", "fps", "action_space"])
        if not len(table):
            raise ValueError(f"{path} holds no episode; {MEND}")
        if missing := [name for name in table.column_names if table[name].null_count]:
            raise ValueError(f"{path}: {', '.join(missing)} is missing in an episode; {MEND}")
        for found, name in ((rates, "fps"), (spaces, "action_space")):
            for value in table[name].unique().to_pylist():
                found.setdefault(value, path)
        keys = list(zip(*(table[name].to_pylist() for name in KEY)))
        for key, following in zip(keys, [*keys[1:], None]):
            if key in seen:
                raise ValueError(f"{path}: episode {key} is in {seen[key]} too; delete one of the two shards")
            seen[key] = path
            if following is not None and key > following:
                raise ValueError(f"{path}: episode {key} comes before {following}, expected them in order; {MEND}")
    _check_one(str(folder), "actions of {} numbers", dims)
    _check_one(str(folder), RATES, rates)
    _check_one(str(folder), SPACES, spaces)
    return episode_features(next(iter(dims)))


def _check_one(where: str, what: str, found: dict[Any, Path]) -> None:
    """Refuses episodes that can't be trained on together. `found`: each value -> a file that has it."""
    if len(found) > 1:
        mixture = " and ".join(f"{what.format(value)} ({path.name})" for value, path in found.items())
        raise ValueError(f"{where} mixes {mixture}; keep them in folders of their own")


def read_manifest(folder: Path, shard: Path) -> dict[str, Any] | None:
    """The manifest of a shard, which tells how it was made; None if there is none.

    Raises:
        UnreadableFile: if the file is damaged, or no manifest.
    """
    path = folder / "manifest" / f"{shard.stem}.json"
    if not path.exists():
        return None
    manifest = read_json(path, MANIFEST_MEND)
    with reading(path, MANIFEST_MEND):
        if not all({"seed", "outcome"} <= set(seed) for seed in manifest["seeds"]) or not isinstance(
            manifest["simulator"], dict
        ):
            raise ValueError("expected a seed and an outcome of each of its seeds, and the simulator's versions")
    return manifest


def check_manifests(folder: Path) -> None:
    """Refuses a folder unless each shard has a manifest that records exactly its seeds, and each manifest a shard.

    Raises:
        UnreadableFile: otherwise; names the manifest, the expectation and the remedy.
    """
    stems = set()
    for shard in shard_paths(folder):
        stems.add(shard.stem)
        path = folder / "manifest" / f"{shard.stem}.json"
        manifest = read_manifest(folder, shard)
        if manifest is None:
            raise UnreadableFile(
                f"{path} is missing; expected how {shard} was made, and the outcome of each seed. Delete the shard "
                "and run the command that made it again, which makes both."
            )
        with reading(shard, MEND):
            seeds = pq.read_table(shard, columns=["seed"])["seed"].to_pylist()
        recorded = [seed["seed"] for seed in manifest["seeds"] if seed["outcome"] == "recorded"]
        if recorded != seeds:
            raise UnreadableFile(
                f"{path} calls seeds {recorded} recorded; expected those of {shard}, {seeds}; {MANIFEST_MEND}."
            )
    if odd := [path for path in sorted((folder / "manifest").glob("[!.]*")) if path.stem not in stems]:
        raise UnreadableFile(
            f"{odd[0]} belongs to no shard; expected data/{odd[0].stem}.parquet beside it. Delete it, or run the "
            "command that made the folder again."
        )


@contextmanager
def reading_repo(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Context manager for code that reads a dataset of the Hub. Raises UnreadableFile for its errors."""
    try:
        yield
    except DatasetGenerationError as error:  # its cause names what is wrong, with all columns if they are others
        raise UnreadableFile(
            f"{repo_id} can't be copied into the cache of datasets, {config.HF_DATASETS_CACHE} "
            f"({' '.join(str(error.__cause__).split())[:300]}); publish its files again if one is damaged or of other "
            "data, or make room there"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        raise UnreadableFile(
            f"{repo_id} is no folder, and as a dataset of the Hub{f' at {revision}' if revision else ''} it can't be "
            f"read ({' '.join(str(error).split())}); check the name, the revision and the network"
        ) from error


def load_episodes(source: str | Path) -> Dataset:
    """All episodes of a folder, or of a repo on the Hub, as one Dataset of all splits (`split` is a column).
    Videos stay bytes, which `decode_column` decodes.

    `check_folder` checks a folder; rows are not checked, `aim-hf validate` does that.

    Raises:
        FileNotFoundError, ValueError: as `check_folder`; for a repo, as `reading_repo`; ValueError for other data, and
            an empty path.
        OSError: for a damaged shard, which it names, or a cache of `datasets` that can't be written.
    """
    folder = check_path("the dataset", source)
    if not folder.exists() and str(source).count("/") == 1:
        with reading_repo(str(source)):
            splits = load_dataset(str(source))
            dataset = load_dataset(str(source), split="+".join(splits))
        check_schema(dataset.features.arrow_schema, str(source))
        if "intervention" not in dataset.features:
            dataset = dataset.add_column("intervention", [None] * len(dataset), feature=Value("int32"))
        keys = Counter(tuple(row[name] for name in KEY) for row in dataset.select_columns(list(KEY)).to_list())
        if twice := [key for key, count in keys.items() if count > 1]:
            raise ValueError(
                f"{source} holds {len(twice)} episodes more than once, such as {twice[0]}; delete the older files in "
                "its data/ and manifest/"
            )
        _check_one(str(source), RATES, dict.fromkeys(dataset.unique("fps"), folder))
        _check_one(str(source), SPACES, dict.fromkeys(dataset.unique("action_space"), folder))
        return _with_videos_as_bytes(dataset)
    features = check_folder(folder)
    paths = [str(path.absolute()) for path in shard_paths(folder)]
    if os.path.expandvars(paths[0]) != paths[0]:  # `datasets` would read the expanded path instead
        raise ValueError(f"{paths[0]}: `datasets` takes a name after $ for a variable's value; rename that folder")
    files = [glob.escape(path) for path in paths]  # `datasets` also takes names for patterns
    try:
        return _with_videos_as_bytes(load_dataset("parquet", data_files=files, split="train", features=features))
    except (DatasetGenerationError, OSError) as error:
        for path in shard_paths(folder):
            with reading(path, MEND):
                for _ in pq.ParquetFile(path).iter_batches(batch_size=1):
                    pass
        raise OSError(
            f"{folder} could not be copied into the cache of datasets, {config.HF_DATASETS_CACHE} "
            f"({error.__cause__ or error}). Make room there, or choose another folder by HF_DATASETS_CACHE"
        ) from error


def _with_videos_as_bytes(dataset: Dataset) -> Dataset:
    """The dataset without `datasets`' own decoding of a row, whose errors name neither the episode nor the column."""
    for name in VIDEO_COLUMNS:
        dataset = dataset.cast_column(name, Video(decode=False))
    return dataset


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one shard, checked, with videos as bytes.

    Raises:
        ValueError: for a bad row; names the file, the row, the expectation and the remedy.
    """
    for where, row in stored_rows(path):
        check_row(row, where)
        check_videos(row, where)
        yield row


def stored_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one shard, not checked, each with its place for errors. Raises ValueError for a damaged file."""
    with reading(path, MEND):
        file = pq.ParquetFile(path)
    check_schema(file.schema_arrow, str(path))
    index = 0
    for group in range(file.num_row_groups):
        with reading(path, MEND):
            rows = file.read_row_group(group).to_pylist()
        for row in rows:
            yield f"{path}, row {index}", row
            index += 1


def check_schema(schema: pa.Schema, where: str) -> int:
    """Checks that columns are those of `episode_features`. Returns the size of an action.

    Raises:
        ValueError: otherwise; names `where` and each column that is missing, unknown or of another type.
    """
    found = {field.name: field.type for field in schema}
    action = found.get("action")
    is_vectors = action is not None and pa.types.is_list(action) and pa.types.is_fixed_size_list(action.value_type)
    dim = action.value_type.list_size if is_vectors else EE_ACTION_DIM
    expected = {field.name: field.type for field in episode_features(dim).arrow_schema}
    wrong = [f"{name} is missing" for name in expected if name not in {*found, "intervention"}]
    wrong += [f"{name} is unknown" for name in found if name not in expected]
    wrong += [
        f"{name} is {found[name]}, expected {type_}"
        for name, type_ in expected.items()
        if name in found and found[name] != type_
    ]
    if wrong:
        raise ValueError(f"{where} is no shard of AIM episodes: {'; '.join(wrong)}. Make it with `aim-hf collect`")
    return dim
