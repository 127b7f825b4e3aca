"""`aim-hf serve`; see src/aim_hf/commands/serve.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["serve", *sys.argv[1:]])
