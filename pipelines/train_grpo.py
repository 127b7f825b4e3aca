"""`aim-hf train-grpo`; see src/aim_hf/commands/train_grpo.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["train-grpo", *sys.argv[1:]])
