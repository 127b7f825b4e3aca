"""`aim-hf export-lerobot`; see src/aim_hf/commands/export_lerobot.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["export-lerobot", *sys.argv[1:]])
