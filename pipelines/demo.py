"""`aim-hf demo`; see src/aim_hf/commands/demo.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["demo", *sys.argv[1:]])
