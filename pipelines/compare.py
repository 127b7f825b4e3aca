"""`aim-hf compare`; see src/aim_hf/commands/compare.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["compare", *sys.argv[1:]])
