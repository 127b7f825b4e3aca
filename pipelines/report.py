"""`aim-hf report`; see src/aim_hf/commands/report.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["report", *sys.argv[1:]])
