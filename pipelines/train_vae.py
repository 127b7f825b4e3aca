"""`aim-hf train-vae`; see src/aim_hf/commands/train_vae.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["train-vae", *sys.argv[1:]])
