"""Atomic writes, records of an output folder's inputs, and clear errors for unreadable files.

- `writing` raises errors that name the file and a remedy.
- `written_file`, `write_json`, `write_text`, `write_bytes`, `written_folder` write under a temporary name and rename.
- `give_usual_mode` lets others read the files of safetensors.
- `claim` records the inputs of an output folder, and refuses a folder with other inputs.
- `append_json_line`, `drop_torn_line` keep a list of records, of which a kill tears at most the last line.
- `reading`, `read_json`, `read_json_lines` raise `UnreadableFile`, which names the file, for every error in it.
- `files_in` lists the files of a folder, those of linked folders too.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from safetensors import SafetensorError

from .checks import check_path, naming, shortened

MADE_FROM = "made_from.json"


class UnreadableFile(OSError, ValueError):
    """A file that is missing, damaged or of another format. The message names the file, the error and a remedy."""


@contextmanager
def reading(path: str | os.PathLike, mend: str) -> Iterator[None]:
    """Context manager for code that reads `path` and nothing else.

    Args:
        path: the file, or the name of what is read, such as "rgb_head_camera of episode 3".
        mend: remedy for the error message, such as "download it again".

    Raises:
        UnreadableFile: for any error of the code.
    """
    try:
        yield
    except UnreadableFile:
        raise
    except FileNotFoundError as error:
        raise UnreadableFile(f"{path} is missing; {mend}.") from error
    except Exception as error:  # a damaged file can raise any, such as SyntaxError and struct.error in PIL
        # A KeyError prints only its key.
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        reason = " ".join(reason.split())  # those of Parquet have several lines
        raise UnreadableFile(f"{path} can't be read ({reason}); {mend}.") from error


def read_json(path: str | os.PathLike, mend: str) -> dict[str, Any]:
    """The object in a JSON file. `mend`: as in `reading`.

    Raises:
        UnreadableFile: if the file is missing or damaged, or holds no object.
    """
    with reading(path, mend):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a JSON {type(content).__name__}, expected a dict")
    return content


def read_json_lines(path: str | os.PathLike, mend: str, needed: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The objects of a JSON lines file.

    Args:
        needed: keys that every object must have.

    Raises:
        UnreadableFile: if the file is missing or damaged; it names the line.
    """
    records = []
    with reading(path, mend):
        # str.splitlines would also split at separators that may occur in a JSON string.
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                with naming(f"line {number}"):
                    record = json.loads(line)
                if not isinstance(record, dict) or not record.keys() >= set(needed):
                    raise ValueError(f"line {number} is {line[:80]}, expected an object with {', '.join(needed)}")
                records.append(record)
    return records


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and in its subfolders, sorted. Links to folders are followed, unless they lead back.

    Raises:
        PermissionError: for a subfolder that can't be read.
    """

    def unreadable(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        above = {os.path.realpath(path) for path in (Path(place), *Path(place).parents)}
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in above]
        found += [path for name in names if (path := Path(place, name)).is_file()]
    return sorted(found)


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Appends a record to a JSON lines file, at once and to the disk.

    Raises:
        OSError: if the file can't be written, for example on a full disk; it names the file.
    """
    line = (json.dumps(record) + "\n").encode()
    # One write in append mode: lines of several processes never mix, and only the last can be torn by a kill.
    with writing(path), open(path, "ab", buffering=0) as file:
        if file.write(line) < len(line):  # a disk that is nearly full takes a part, without an error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


def drop_torn_line(path: Path) -> None:
    """Cuts off a last line that a kill has left without its end."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def claim(folder: Path, made_from: dict[str, Any], *outputs: str, record: str = MADE_FROM) -> None:
    """Records the inputs of a command in its output folder, before the command writes anything else to it.

    Several processes may claim a folder one after the other: `with state.main_process_first(): claim(...)`.

    Args:
        made_from: everything that the outputs depend on, and nothing that may change when a run is resumed; must be
            JSON-serializable. `X_sha256` is the digest of the content that `X` names: while it is equal, a difference
            in `X` doesn't count.
        outputs: glob patterns in `folder` of what a later call takes up, to find outputs without a record.
        record: file name of the record.

    Raises:
        FileExistsError: if the folder has outputs of other settings, which it names, or outputs without a record.
        UnreadableFile: if the record is damaged.
    """
    made_from, path = json.loads(json.dumps(made_from, allow_nan=False)), folder / record
    if path.is_file():
        if told := differences(path, made_from, "delete the folder, and make it again"):
            raise FileExistsError(
                f"{folder} was made from something else: {told}. Give the same settings to go on with it, choose "
                f"another output folder, or delete {' and '.join((record, *outputs))} there."
            )
    elif other := next((path for pattern in outputs for path in folder.glob(pattern)), None):
        raise FileExistsError(
            f"{other} exists, but not {path}, the record of its inputs. Choose another output folder, or "
            f"delete {' and '.join(outputs)} there."
        )
    else:
        write_json(path, made_from)


def differences(record: Path, made_from: dict[str, Any], mend: str) -> str:
    """How `made_from` differs from a record of `claim`; "" if it doesn't. `mend`: as in `reading`.

    Raises:
        UnreadableFile: if the record is missing or damaged.
    """
    found, made_from = read_json(record, mend), json.loads(json.dumps(made_from))
    all_told = {name: _differences(name, found.get(name), made_from.get(name)) for name in {**found, **made_from}}
    names = [name for name, told in all_told.items() if told]
    names = [name for name in names if not made_from.get(f"{name}_sha256") or f"{name}_sha256" in names]
    return "; ".join(difference for name in names for difference in all_told[name])


def _differences(name: str, there: Any, now: Any) -> list[str]:
    """A sentence for each difference of a setting. Dicts with common keys, such as configurations, differ by field."""
    if there == now:
        return []
    if isinstance(there, dict) and isinstance(now, dict) and there.keys() & now.keys():
        fields = {**there, **now}
        return [told for field in fields for told in _differences(f"{name}.{field}", there.get(field), now.get(field))]
    return [f"{name} {shortened(there)} there, {shortened(now)} now"]


@contextmanager
def writing(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Context manager for code that writes `path`.

    Args:
        errors: of the code where it can't write, besides those of Python and of safetensors.

    Raises:
        OSError: for any of them; it names the file, the reason and a remedy.
    """
    try:
        yield
    except UnreadableFile:  # an input couldn't be read
        raise
    except (OSError, SafetensorError, *errors) as error:
        number = getattr(error, "errno", None)  # only Python's errors have one
        reason = getattr(error, "strerror", None) or error
        told = (
            f"{path} could not be written ({reason}); files finished before are complete. Make room, or choose a "
            "folder that can be written, then run the command again"
        )
        raise (OSError(told) if number is None else OSError(number, told)) from error


@contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path, which is renamed to `path` on success, and deleted on failure.

    Raises:
        OSError: if the file can't be written, for example on a full disk; it names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if path.suffix == ".safetensors":
                give_usual_mode([temporary])
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # the file doesn't exist after success, or if its folder couldn't be made
            temporary.unlink()


def give_usual_mode(files: Iterable[Path]) -> None:
    """Gives each file the mode that a new file has there: safetensors lets its owner alone read a file, whatever the
    umask (https://github.com/safetensors/safetensors/issues/782)."""
    for file in files:
        new = file.with_name(f".{token_hex(4)}.new")
        new.touch()
        mode = new.stat().st_mode
        new.unlink()
        if file.stat().st_mode != mode:  # a disk whose files all have the same mode refuses any other
            file.chmod(mode)


def write_json(path: Path, content: Any, indent: int = 1) -> None:
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    with written_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def written_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder, whose content is moved to `folder` on success.

    If writing fails, `folder` doesn't change. Other files in an existing `folder` are kept. `model_index.json` is
    deleted first and moved last, so that `stored_tensors` refuses the folder of an interrupted move.

    Raises:
        OSError: if the folder can't be made or written, for example on a full disk; it names the folder.
        ValueError: for an empty path.
    """
    folder = check_path("the folder", folder).resolve()
    # Inside an existing folder, since its parent may be on another disk, or not writable. No other call has its name:
    # all ranks of a training may save at once.
    name = f"{token_hex(4)}.partial"
    partial = folder / f".{name}" if folder.exists() else folder.with_name(f".{folder.name}.{name}")
    try:
        partial.mkdir(parents=True)
        yield partial
        give_usual_mode(partial.rglob("*.safetensors"))
        if partial.parent != folder:
            try:
                partial.rename(folder)
                return
            except OSError:
                if not folder.is_dir():  # otherwise another call has made `folder` meanwhile
                    raise
        (folder / "model_index.json").unlink(missing_ok=True)
        for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == "model_index.json"):
            old = folder / entry.name
            if old.is_symlink():  # a folder can't replace a link; the link's target is kept
                old.unlink()
            elif entry.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            entry.replace(old)
    except Exception as error:
        # An OSError without a number is one of the Hub, from a push inside the context. Tokenizers raise an Exception.
        if not (isinstance(error, SafetensorError) or type(error) is Exception or getattr(error, "errno", None)):
            raise
        first = error.__cause__ or error  # `writing` names a file of `partial`, and that earlier ones are kept
        reason = getattr(first, "strerror", None) or str(first)
        raise OSError(
            getattr(error, "errno", errno.EIO),
            f"{folder} could not be written ({reason}). Make room or choose another folder, then save again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
