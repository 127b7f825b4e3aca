"""Files and folders that are whole or not there at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """A temporary name to write a file to; it becomes `path` at the end, or nothing is left.

    Raises:
        OSError: if the file can't be written, such as on a full disk: names it and says that the rest is safe.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror or error}); what was finished before is whole. Make room, "
            "then run the same command again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with written_file(path) as temporary:
        temporary.write_text(text)


@contextmanager
def written_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Gives an empty folder to write into, and moves what is in it to `folder` when all is written.

    If writing fails, `folder` stays as it was. Other files in an existing `folder` stay too. `model_index.json` goes
    first and comes last, so that an interrupted move leaves a folder that `stored_tensors` refuses.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if not folder.exists():
            partial.rename(folder)
            return
        (folder / "model_index.json").unlink(missing_ok=True)
        for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == "model_index.json"):
            if entry.is_dir():
                shutil.rmtree(folder / entry.name, ignore_errors=True)
            entry.replace(folder / entry.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
