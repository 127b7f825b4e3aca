"""`aim-hf app`; see src/aim_hf/commands/app.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["app", *sys.argv[1:]])
