"""`lerobot-train` splits the policy by its layers and trains it as if it were whole."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from fixtures_dataset import REPO_ID, make_dataset
from lerobot_policy_aim import AIMPolicy

from tests.fixtures_pipeline import make_pipeline


def test_two_processes_that_shard_train_as_two_that_do_not(tmp_path):
    make_pipeline("qpos", action_lookahead_frames=1).save_pretrained(tmp_path / "base")
    make_dataset(tmp_path / "dataset", "qpos")
    options = ["--policy.type=aim", f"--policy.base_model_id={tmp_path / 'base'}", "--policy.push_to_hub=false"]
    options += [f"--dataset.repo_id={REPO_ID}", f"--dataset.root={tmp_path / 'dataset'}", "--policy.device=cpu"]
    options += ["--batch_size=1", "--num_workers=0", "--steps=2", "--seed=0"]
    options += ["--policy.imagined_value_probability=0.5"]  # in the second step of each process
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    worker, weights = str(Path(__file__).with_name("fsdp_worker.py")), {}
    for mode in ("ddp", "fsdp"):
        command = [*launch, worker, mode, *options, f"--output_dir={tmp_path / mode}"]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        saved = tmp_path / mode / "checkpoints" / "last" / "pretrained_model"
        weights[mode] = AIMPolicy.from_pretrained(saved).state_dict()
    before = AIMPolicy.from_pipeline(tmp_path / "base").state_dict()
    trained = [name for name, tensor in weights["ddp"].items() if not torch.equal(tensor, before[name])]
    assert len(trained) == len(before)
    torch.testing.assert_close(weights["fsdp"], weights["ddp"], rtol=1e-3, atol=1e-6)
