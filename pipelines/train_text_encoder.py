"""`aim-hf train-text-encoder`; see src/aim_hf/commands/train_text_encoder.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["train-text-encoder", *sys.argv[1:]])
