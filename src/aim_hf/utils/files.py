"""Files and folders that are whole or not there at all, that say what they were made from, and whose damage is told.

- `written_file`, `write_text`, `written_folder` write under a temporary name and rename.
- `claim` records what an output folder is made from, and refuses one that was made from something else.
- `reading`, `read_json`, `read_json_lines` turn whatever goes wrong in a file of somebody else's into an
  `UnreadableFile` that names it.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MADE_FROM = "made_from.json"


class UnreadableFile(OSError, ValueError):
    """A file that is missing, damaged or of another kind. Its message names it, what is wrong, and the mend."""


@contextmanager
def reading(path: str | os.PathLike, mend: str) -> Iterator[None]:
    """Around code that reads `path` and nothing else.

    Args:
        mend: what the reader of the error can do, such as "download it again".

    Raises:
        UnreadableFile: for whatever goes wrong in it.
    """
    try:
        yield
    except UnreadableFile:
        raise
    except FileNotFoundError as error:
        raise UnreadableFile(f"{path} is missing; {mend}.") from error
    except (OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, SafetensorError) as error:
        # LookupError prints its key alone, which says nothing to whoever doesn't know the code.
        reason = f"has no {error}" if isinstance(error, LookupError) else str(error) or type(error).__name__
        raise UnreadableFile(f"{path} can't be read ({reason}); {mend}.") from error


def read_json(path: str | os.PathLike, mend: str, kind: type = dict) -> Any:
    """The content of a JSON file.

    Args:
        mend: as in `reading`.
        kind: the type that it must have, `dict` or `list`.

    Raises:
        UnreadableFile: if it is missing, damaged, or holds something else.
    """
    with reading(path, mend):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds a JSON {type(content).__name__}, expected a {kind.__name__}")
    return content


def read_json_lines(path: str | os.PathLike, mend: str, needed: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The objects of a file that holds one a line.

    Args:
        needed: names that each of them must have.

    Raises:
        UnreadableFile: if the file is missing or damaged; names the line.
    """
    records = []
    with reading(path, mend):
        # str.splitlines would also cut at separators that may be part of a JSON text.
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                if not isinstance(record, dict) or not record.keys() >= set(needed):
                    raise ValueError(f"line {number} is {line[:80]}, expected an object with {', '.join(needed)}")
                records.append(record)
    return records


def claim(folder: Path, made_from: dict[str, Any], outputs: str, record: str = MADE_FROM) -> None:
    """Records what the output folder of a command is made from, before anything else is written to it.

    Several processes may claim a folder one after the other: `with state.main_process_first(): claim(...)`.

    Args:
        made_from: JSON-able; whatever the output depends on, and nothing that may change from one call to the next.
        outputs: glob pattern of what the command leaves in `folder`, by which an output without a record is told.
        record: name of the record's file.

    Raises:
        FileExistsError: if the folder holds outputs of other settings, which it names, or outputs without a record.
        UnreadableFile: if the record is damaged.
    """
    made_from = json.loads(json.dumps(made_from, allow_nan=False))
    path = folder / record
    go_on = "Give the same settings to go on with it, choose another output folder, or delete this one."
    if path.is_file():
        found = read_json(path, "delete the folder, and make it again")
        names = [name for name in {**found, **made_from} if found.get(name) != made_from.get(name)]
        if names:
            told = "; ".join(f"{name} {found.get(name)!r} there, {made_from.get(name)!r} now" for name in names)
            raise FileExistsError(f"{folder} was made from something else: {told}. {go_on}")
    elif other := next(folder.glob(outputs), None):
        raise FileExistsError(
            f"{other} is there, but no {path} that says what it was made from. Choose another output folder, or "
            "delete this one."
        )
    else:
        write_text(path, json.dumps(made_from, indent=1) + "\n")


@contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """A temporary name to write a file to; it becomes `path` at the end, or nothing is left.

    Raises:
        OSError: if the file can't be written, such as on a full disk: names it and says that the rest is safe.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except UnreadableFile:  # what was to be written couldn't be read
        raise
    except (OSError, SafetensorError) as error:
        raise OSError(
            getattr(error, "errno", None),
            f"{path} could not be written ({getattr(error, 'strerror', None) or error}); what was finished before is "
            "whole. Make room, or choose a folder that can be written, then run the command again",
        ) from error
    finally:
        with suppress(OSError):  # there is nothing where not even the folder could be made
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    with written_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def written_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Gives an empty folder to write into, and moves what is in it to `folder` when all is written.

    If writing fails, `folder` stays as it was. Other files in an existing `folder` stay too. `model_index.json` goes
    first and comes last, so that an interrupted move leaves a folder that `stored_tensors` refuses.

    Raises:
        OSError: if the folder can't be made or written, such as on a full disk; it is named.
    """
    folder = Path(folder).resolve()
    # Within a folder that is there already: what it lies in may be another disk, or not to be written to.
    partial = folder / ".partial" if folder.exists() else folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if not folder.exists():
            partial.rename(folder)
            return
        (folder / "model_index.json").unlink(missing_ok=True)
        for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == "model_index.json"):
            if entry.is_dir():
                shutil.rmtree(folder / entry.name, ignore_errors=True)
            entry.replace(folder / entry.name)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:  # the Hub's, when what was written is sent
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            getattr(error, "errno", errno.EIO),
            f"{folder} could not be written ({reason}). Make room or choose another folder, then save again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
