"""Imports between folders run in one direction, as `[tool.importlinter]` of pyproject.toml draws them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_import_runs_back_up_or_in_a_circle():
    lint = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(lint, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
