"""`aim-hf publish`; see src/aim_hf/commands/publish.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["publish", *sys.argv[1:]])
