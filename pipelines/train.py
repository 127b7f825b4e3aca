"""`aim-hf train`; see src/aim_hf/commands/train.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
