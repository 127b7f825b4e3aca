"""Where numbers and data come from: versions, commit, hardware and command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("aim-hf", "torch", "transformers", "diffusers", "accelerate", "sapien", "numpy")


def provenance(device: torch.device) -> dict[str, Any]:
    """Where numbers come from: versions, commit, hardware and command."""
    import torch  # not above: simulator processes import this file too, and need no network

    hardware = {"device": device.type, "cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {
        "versions": {"python": platform.python_version()} | {name: package_version(name) for name in PACKAGES},
        "commit": source_commit(),
        "hardware": hardware,
        "command": command(),
    }


def command() -> str:
    """The command that runs, as it can be given again."""
    script = Path(sys.argv[0])
    return shlex.join(["aim-hf" if script.name in ("aim-hf", "__main__.py") else sys.argv[0], *sys.argv[1:]])


def machine(hardware: dict[str, Any]) -> str:
    """The `hardware` of `provenance`, in a few words."""
    return hardware.get("gpu") or f"{hardware['cpu']}, {hardware['cores']} cores"


def package_version(name: str) -> str | None:
    """None where it isn't installed: a GPU machine that only times the model needs no simulator."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def source_commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout that a folder (this package's) is in, marked if files differ from it other than
    measured results; None outside of one. Nothing is written."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, env=variables).stdout.strip()

    variables = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        commit = git("rev-parse", "HEAD")
        sources = (":(top)", ":(top,exclude)benchmarks/results")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *sources)
    except FileNotFoundError:
        return None
    return f"{commit}-dirty" if changed else commit or None
