"""An installed package needs no checkout: the wheel brings all that the command uses."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_runs_without_a_checkout(tmp_path):
    source = tmp_path / "source"  # a build leaves files beside the sources
    for name in ("src", "checkpoints"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "aim-hf = aim_hf.commands:run" in entry_points.read_text()

    def run(*options: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        return subprocess.run(
            [sys.executable, *options], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert "evaluate" in run("-m", "aim_hf")
    program = "import aim_hf; print(aim_hf.AIM_TINY); from aim_hf.commands import run\n"
    program += "run('demo --tasks click_bell --episodes 1 --output_dir demo'.split())\n"
    program += "run('collect --tasks click_bell --splits easy --episodes 1 --output_dir episodes'.split())\n"
    program += "run('report --results demo --output_dir report'.split())"  # in one process, for imports cost seconds
    told = run("-c", program).splitlines()
    assert told[0] == str(installed / "aim_hf/checkpoints/aim-tiny")
    assert (tmp_path / "demo" / "contact_sheet.png").is_file()
    assert (tmp_path / "episodes" / "README.md").is_file()
    assert "report.html" in told[-1] and "click_bell" in (tmp_path / "report" / "report.md").read_text()
