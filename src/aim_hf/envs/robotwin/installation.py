"""Finds RoboTwin, as a checkout in either layout or as a pip package: interpreter, code, configurations, assets."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .client import RoboTwinMissing
from .tasks import CONFIGS

ROOT, PYTHON, ASSETS = "ROBOTWIN_ROOT", "ROBOTWIN_PYTHON", "ROBOTWIN_ASSETS_ROOT"  # variables; the last is RoboTwin's
PACKAGE = "rlinf-robotwin-runtime"

_CONFIGS = ("_embodiment_config", "_camera_config", "_eval_step_limit")
_LAYOUTS = ("env_cfg/task_config", "task_config")  # of a checkout: current, and in the releases of 2025
_PROBE = """
import importlib.util, json, sys
found = importlib.util.find_spec("robotwin")
numpy = importlib.util.find_spec("numpy") is not None
print(json.dumps([sys.version_info[:2], numpy, found.origin if found else None]))
"""


@dataclass(frozen=True)
class Installation:
    """RoboTwin as it is installed.

    python: its interpreter. code: the checkout, or the folder of the package. configs: the folder of the tasks'
    configurations. assets: the folder that holds `assets/`, which is RoboTwin's working directory. is_package: whether
    the code is the pip package, whose modules are named `robotwin.envs.<task>`.
    """

    python: str
    code: Path
    configs: Path
    assets: Path
    is_package: bool


def find_installation(
    root: str | os.PathLike | None, python: str | os.PathLike | None, assets: str | os.PathLike | None, task: str
) -> Installation:
    """The installation that the arguments name, or the environment variables where an argument is None.

    Without a root, RoboTwin is the pip package in the interpreter. The assets are by default those of the checkout.

    Raises RoboTwinMissing if files are missing, or if the interpreter can't run RoboTwin.
    """
    python = _interpreter(python)
    root = root or os.environ.get(ROOT)
    assets = assets or os.environ.get(ASSETS)
    if root:
        root = Path(os.path.expanduser(root)).resolve()
        configs = _check_checkout(root, task)
        _package_folder(python)  # raises if the interpreter can't run
        return Installation(python, root, configs, _assets_folder(assets) if assets else root, False)
    package = _package_folder(python)
    if package is None:
        raise RoboTwinMissing(
            f"no checkout is given, and {python} has no package {PACKAGE}: pass root=, or set {ROOT}, the path of a "
            "clone of RoboTwin 2.0, or install the package there"
        )
    if not assets:
        raise RoboTwinMissing(
            f"no assets are given: pass assets=, or set {ASSETS}, the folder that `robotwin-download-assets --output` "
            "or `make robotwin` has written"
        )
    return Installation(python, package, package / "configs" / "task", _assets_folder(assets), True)


def find_configs() -> Path | None:
    """The folder of configurations that the environment variables name; None if RoboTwin isn't installed."""
    if root := os.environ.get(ROOT):
        return _checkout_configs(Path(os.path.expanduser(root)))
    if os.environ.get(PYTHON):
        package = _package_folder(_interpreter(None))
        return package and package / "configs" / "task"
    return None


def _assets_folder(assets: str | os.PathLike) -> Path:
    folder = Path(os.path.expanduser(assets)).resolve()
    if not (folder / "assets").is_dir():
        raise RoboTwinMissing(f"{folder} holds no folder assets: give the folder that contains RoboTwin's assets/")
    return folder


def _interpreter(python: str | os.PathLike | None) -> str:
    python = os.path.expanduser(python or os.environ.get(PYTHON, ""))
    if not python:
        raise RoboTwinMissing(f"no interpreter is given: pass python=, or set {PYTHON}, RoboTwin's own python")
    return os.path.abspath(python) if os.path.dirname(python) else python  # a bare name is in PATH


@lru_cache
def _package_folder(python: str) -> Path | None:
    """The folder of the package `robotwin` in an interpreter. Raises RoboTwinMissing if the interpreter can't run."""
    try:
        probe = subprocess.run([python, "-c", _PROBE], cwd=os.sep, capture_output=True, text=True, errors="replace")
    except OSError as error:
        reason = "it is a folder" if os.path.isdir(python) else error.strerror
        raise RoboTwinMissing(
            f"the interpreter {python!r} can't be started ({reason}): give RoboTwin's own python"
        ) from error
    if probe.returncode:
        said = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        raise RoboTwinMissing(
            f"the interpreter {python!r} ends with exit code {probe.returncode} ({said}): give RoboTwin's own"
        )
    try:
        version, has_numpy, origin = json.loads(probe.stdout.splitlines()[-1])
    except (LookupError, TypeError, ValueError) as error:
        said = probe.stdout.strip()[-80:]
        raise RoboTwinMissing(f"{python!r} is no Python, it answers {said!r}: give RoboTwin's own python") from error
    if version < [3, 10] or not has_numpy:
        found = f"Python {version[0]}.{version[1]}, {'with' if has_numpy else 'without'} numpy"
        raise RoboTwinMissing(
            f"the interpreter {python!r} is {found}: give RoboTwin's own python, 3.10 or newer with its requirements"
        )
    return origin and Path(origin).parent


def _checkout_configs(root: Path) -> Path | None:
    return next((root / layout for layout in _LAYOUTS if (root / layout / "demo_clean.yml").is_file()), None)


def _check_checkout(root: Path, task: str) -> Path:
    """The folder of the checkout's configurations. Raises RoboTwinMissing unless it has one of the two layouts."""
    if not root.is_dir():
        raise RoboTwinMissing(f"{root} is no folder: give the path of a clone of RoboTwin 2.0")
    files = ["envs/_base_task.py", f"envs/{task}.py", "description/utils/generate_episode_instructions.py"]
    missing = [
        f"{root / file} isn't there: give the path of a clone of RoboTwin 2.0"
        for file in files
        if not (root / file).is_file()
    ]
    configs = _checkout_configs(root)
    if configs is None:
        missing.append(
            f"{root} has neither {_LAYOUTS[0]}/demo_clean.yml nor {_LAYOUTS[1]}/demo_clean.yml: it is in no known "
            "layout (that of 2025 or today's)"
        )
    else:
        names = (*CONFIGS.values(), *_CONFIGS)
        paths = [configs / f"{name}.yml" for name in names]
        missing += [f"{path} isn't there: restore it" for path in paths if not path.is_file()]
    if missing:
        raise RoboTwinMissing(*missing)
    return configs
