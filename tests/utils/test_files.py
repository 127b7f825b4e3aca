"""Files and folders that can't be written: the error says which, why and what to do, and nothing else."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from aim_hf.utils.files import (
    UnreadableFile,
    append_json_line,
    claim,
    files_in,
    reading,
    write_text,
    written_file,
    written_folder,
)


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


def test_a_name_counts_for_nothing_where_its_content_is_the_same(tmp_path):
    """Such as the same policy by a relative and by an absolute path."""
    claim(tmp_path, {"policy": "runs/a", "policy_sha256": "12", "split": "easy"}, "*.json")
    claim(tmp_path, {"policy": "/home/runs/a", "policy_sha256": "12", "split": "easy"}, "*.json")
    for digest, told in (
        ("34", "policy 'runs/a' there, '/home/runs/a' now; policy_sha256 '12' there, '34' now. Give"),
        (None, "policy 'runs/a' there, '/home/runs/a' now; policy_sha256 '12' there, None now. Give"),
    ):
        with pytest.raises(FileExistsError, match=f"made from something else: {told}"):
            claim(tmp_path, {"policy": "/home/runs/a", "policy_sha256": digest, "split": "easy"}, "*.json")
    claim(tmp_path / "b", {"policy": "a", "policy_sha256": None}, "*.json")
    with pytest.raises(FileExistsError, match="policy 'a' there, 'b' now"):
        claim(tmp_path / "b", {"policy": "b", "policy_sha256": None}, "*.json")


def test_what_differs_in_a_configuration_is_told_by_field(tmp_path):
    """A model's has more fields than a message has room for."""
    sizes = {f"size_of_part_{number}": number for number in range(30)}
    claim(tmp_path, {"model": sizes | {"visibility": "aim", "of": {"head": 1, "body": 2}}, "seed": 0}, "*.json")
    with pytest.raises(FileExistsError) as raised:
        claim(
            tmp_path, {"model": sizes | {"visibility": "map_only", "of": {"head": 1}, "new": 3}, "seed": 0}, "*.json"
        )
    told = (
        "model.visibility 'aim' there, 'map_only' now; model.of.body 2 there, None now; model.new None there, 3 now."
    )
    assert f"made from something else: {told} Give the same settings" in str(raised.value)


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


@pytest.mark.parametrize(
    "error", [OSError(errno.EFBIG, "File too large"), SafetensorError("File too large"), Exception("File too large")]
)
def test_why_a_folder_could_not_be_written_is_told(tmp_path, error):
    """A tokenizer that can't write raises a plain `Exception`."""
    with pytest.raises(OSError, match=f"{tmp_path}/a could not be written .File too large.. Make room or choose"):
        with written_folder(tmp_path / "a"):
            raise error
    for other in (ValueError("of another kind"), OSError("of the Hub")):
        with pytest.raises(type(other), match=f"^{other}$"), written_folder(tmp_path / "a"):
            raise other
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_file_could_not_be_written_is_told_once(tmp_path):
    """The file's own error named a hidden folder, and said that earlier files are complete."""
    with pytest.raises(OSError) as raised, written_folder(tmp_path / "a") as folder:
        (folder / "b").touch()
        write_text(folder / "b" / "c", "")
    told = f"{tmp_path / 'a'} could not be written (File exists). Make room or choose another folder, then save again"
    assert raised.value.strerror == told and not list(tmp_path.iterdir())


@pytest.mark.parametrize("existed", [False, True])
def test_several_processes_may_write_one_folder(tmp_path, existed):
    """As all ranks of a training that save: each writes a whole one, and the last stays."""
    folder = tmp_path / "aim"
    if existed:
        folder.mkdir()
    with written_folder(folder) as first, written_folder(folder) as second:
        for place, content in ((first, "first"), (second, "second")):
            (place / "vae").mkdir()
            for name in ("vae/config.json", "model_index.json"):
                (place / name).write_text(content)
    assert [(folder / name).read_text() for name in ("vae/config.json", "model_index.json")] == ["first", "first"]
    assert sorted(path.name for path in folder.iterdir()) == ["model_index.json", "vae"]
    assert list(tmp_path.iterdir()) == [folder]


def test_others_may_read_what_safetensors_wrote(tmp_path):
    """safetensors lets the owner alone read its files; others may read them as far as the umask allows."""
    before = os.umask(0o027)
    try:
        with written_file(tmp_path / "shard.safetensors") as temporary:
            save_file({"a": torch.zeros(2)}, temporary)
        with written_folder(tmp_path / "aim") as folder:
            (folder / "vae").mkdir()
            save_file({"a": torch.zeros(2)}, folder / "vae" / "model.safetensors")
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files_in(tmp_path)} == {
        "model.safetensors": "0o640",
        "shard.safetensors": "0o640",
    }


def test_a_long_record_is_told_in_short(tmp_path):
    claim(tmp_path, {"seeds": list(range(1000))}, "*.parquet")
    with pytest.raises(FileExistsError, match=r"seeds \[0, 1, .{100,200}… there, \[1\] now") as raised:
        claim(tmp_path, {"seeds": [1]}, "*.parquet")
    assert len(str(raised.value)) < 600


def test_a_link_in_a_folder_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path):
    """A folder can't be renamed to a link, so the write ended halfway, without `model_index.json`."""
    shared, folder = tmp_path / "shared", tmp_path / "folder"
    for place, content in ((shared, "theirs"), (folder, "old")):
        place.mkdir()
        (place / "config.json").write_text(content)
    (folder / "vae").symlink_to(shared)
    (folder / "model_index.json").symlink_to(shared / "config.json")
    with written_folder(folder) as partial:
        (partial / "vae").mkdir()
        for name in ("vae/config.json", "model_index.json"):
            (partial / name).write_text("new")
    assert [(folder / name).read_text() for name in ("vae/config.json", "model_index.json")] == ["new", "new"]
    assert not (folder / "vae").is_symlink() and (shared / "config.json").read_text() == "theirs"


def test_a_line_that_the_disk_took_in_part_is_an_error(tmp_path):
    """A write raises only where it could write nothing."""
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"seed": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(OSError) as raised:
            append_json_line(path, {"seed": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(raised.value).startswith(f"[Errno 28] {path} could not be written (No space left on device); ")
    assert path.read_text() == '{"seed": 1}\n{"see'


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    """Its files would be missing in what is published."""
    (tmp_path / "vae").mkdir()
    scandir = os.scandir

    def refuse(place):
        if Path(place).name == "vae":
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}/vae'"):
        files_in(tmp_path)
    assert files_in(tmp_path / "nowhere") == []


def test_files_of_linked_folders_are_listed_once(tmp_path):
    shared, folder = tmp_path / "shared", tmp_path / "folder"
    for place in (shared / "deep", folder):
        place.mkdir(parents=True)
        (place / "a.json").write_text("{}")
    (folder / "vae").symlink_to(shared)
    (shared / "back").symlink_to(folder)  # a way back to where it came from
    (shared / "up").symlink_to(tmp_path)
    (folder / "gone.json").symlink_to(tmp_path / "nowhere")
    assert files_in(folder) == [folder / "a.json", folder / "vae" / "deep" / "a.json"]
