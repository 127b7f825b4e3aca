"""FSDP2 splits the model by its blocks and trains it as if it were whole."""

import os
import subprocess
import sys


def test_gradients_of_a_split_model_are_those_of_the_whole_one(python):
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*launch, "-m", "tests.training.fsdp_worker"], check=True, timeout=240, env=os.environ | variables)
