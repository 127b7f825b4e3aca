"""`aim-hf evaluate`; see src/aim_hf/commands/evaluate.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
