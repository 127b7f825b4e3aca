"""`aim-hf validate`; see src/aim_hf/commands/validate.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["validate", *sys.argv[1:]])
