"""The dry run lists what would be sent, and refuses what isn't whole."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "data"))
from fixtures_episodes import make_episode, write_shard  # noqa: E402

from aim_hf.data.card import write_card  # noqa: E402
from aim_hf.data.shards import ShardWriter  # noqa: E402


@pytest.fixture
def dataset(tmp_path):
    write_shard(tmp_path, [make_episode()])
    write_card(tmp_path)
    return tmp_path


def publish(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "pipelines" / "publish.py", folder, "org/name"]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_dry_run_lists_every_file_and_sends_nothing(dataset):
    (dataset / ".hidden").write_text("never sent")
    answer = publish(dataset)
    assert answer.returncode == 0, answer.stderr
    assert "data/easy-click_bell-00000.parquet" in answer.stdout and "README.md" in answer.stdout
    assert "in 3 files, to the dataset repo org/name" in answer.stdout and "Nothing was sent" in answer.stdout
    assert ".hidden" not in answer.stdout


def test_a_checkpoint_is_a_model():
    answer = publish(ROOT / "checkpoints" / "aim-tiny")
    assert "to the model repo org/name" in answer.stdout and "model_index.json" in answer.stdout


def test_what_is_not_whole_is_refused(dataset, tmp_path_factory):
    ShardWriter(dataset, "easy", "lift_pot", 0).add(make_episode().to_row())
    answer = publish(dataset)
    assert answer.returncode == 2 and "unfinished shard" in answer.stderr and answer.stdout == ""
    empty = tmp_path_factory.mktemp("empty")
    assert "no README.md" in publish(empty).stderr
    (empty / "README.md").write_text("# Empty")
    assert "neither data/*.parquet nor model_index.json" in publish(empty).stderr
