"""`aim-hf import-lerobot`; see src/aim_hf/commands/import_lerobot.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["import-lerobot", *sys.argv[1:]])
