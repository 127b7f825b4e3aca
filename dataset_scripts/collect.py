"""`aim-hf collect`; see src/aim_hf/commands/collect.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["collect", *sys.argv[1:]])
