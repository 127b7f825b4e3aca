"""Files and folders that can't be written: the error says which, why and what to do, and nothing else."""

import errno
import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

from aim_hf.utils.files import UnreadableFile, reading, written_file, written_folder


@pytest.mark.parametrize(
    ("error", "told", "number"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "[Errno 28] {} could not be written (No space left on d",
            28,
        ),
        (
            SafetensorError("Error while serializing: File too large"),
            "{} could not be written (Error while seri",
            None,
        ),
        (OSError("encoder error -2"), "{} could not be written (encoder error -2); ", None),
    ],
    ids=str,
)
def test_why_a_file_could_not_be_written_is_told(tmp_path, error, told, number):
    path = tmp_path / "folder" / "shard.safetensors"
    with pytest.raises(OSError) as raised, written_file(path) as temporary:
        temporary.write_text("a part")
        raise error
    assert str(raised.value).startswith(told.format(path)) and "Make room, or choose" in str(raised.value)
    assert raised.value.errno == number and "None" not in str(raised.value)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"rows": {}}', "has no 'steps'"),
        ('{"rows": {}, "steps": 0}', "division by zero"),
        ('{"rows": [], "steps": 1}', "'list' object has no attribute 'items'"),
        ('{"rows": {}, "steps": "1"}', "unsupported operand"),
        ("{", "Expecting property name"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_name(tmp_path, content, told):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(UnreadableFile) as raised, reading(path, "make it again"):
        record = json.loads(path.read_text())
        _ = 1 / record["steps"], record["rows"].items()
    assert str(raised.value).startswith(f"{path} can't be read ({told}") and str(raised.value).endswith(
        "make it again."
    )


def test_an_empty_path_is_no_folder(tmp_path, monkeypatch):
    """`Path` takes it for the current folder."""
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(ValueError, match="the folder is ''; expected a path. Give '.' for the current folder"),
        written_folder(""),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [".", Path("."), "below", Path("below/deeper")])
def test_a_folder_is_written_where_its_path_says(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with written_folder(folder) as partial:
        (partial / "config.json").write_text("{}")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / folder / "config.json"]
