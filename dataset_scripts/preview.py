"""`aim-hf preview`; see src/aim_hf/commands/preview.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["preview", *sys.argv[1:]])
