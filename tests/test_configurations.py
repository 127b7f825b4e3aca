"""The configurations that come with the project: accelerate takes its own, and training and rollouts at full size see
the same history."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from aim_hf import AIMForWorldAction
from aim_hf.model.presets import PRESETS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "pipelines" / "accelerate"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == (8 if path.stem in ("fsdp2", "gpus") else 1)
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in AIMForWorldAction._no_split_modules


def test_a_training_window_at_full_size_holds_the_history_of_a_rollout():
    """The last chunk of the window attends to as many whole chunks as a rollout keeps."""
    command = re.search(r"fsdp2\.yaml -m aim_hf train.*?```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    window = int(re.search(r"--window_chunks (\d+)", command[0])[1])
    assert PRESETS["wan2.2-ti2v-5b"]["history_chunks"] == window - 1
