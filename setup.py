"""Puts the checkpoint that comes with the project into wheels, so that `pip install aim-hf` brings it; all else about
the package is said by pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCheckpoint(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "aim_hf", "checkpoints", "aim-tiny")
            shutil.copytree("checkpoints/aim-tiny", folder, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithCheckpoint})
