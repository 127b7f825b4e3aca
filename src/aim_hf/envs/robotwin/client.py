"""Starts the worker in RoboTwin's interpreter, exchanges messages with it, and handles its failures."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...utils.extras import SimulatorFailed
from ..base import SimulatorLost
from .messages import read_message, write_message

START_TIMEOUT = 1200.0  # s: the first import of CuRobo compiles its kernels
_WORKER = str(Path(__file__).with_name("worker.py"))
_POLL = 0.5  # s
_TAIL = 2000  # characters of the simulator's last output, for errors

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]  # header and arrays


class RoboTwinError(SimulatorFailed):
    """RoboTwin's own code failed."""


class RoboTwinMissing(RoboTwinError):
    """Requirements of RoboTwin are missing. `missing` are sentences, each with its remedy."""

    def __init__(self, *missing: str) -> None:
        super().__init__(*missing)  # the arguments as given, so that the error can be pickled
        self.missing = list(missing)

    def __str__(self) -> str:
        return "RoboTwin can't run:\n" + "\n".join(f"- {sentence}." for sentence in self.missing)


class SettingRefused(RoboTwinError, ValueError):
    """RoboTwin doesn't know the robot or the shader, or can't read its configuration."""


class OperationFailed(RoboTwinError):
    """A scene can't be set up, or its expert fails. The worker is ready for the next request."""


class SceneBroken(OperationFailed):
    """RoboTwin's code fails as it sets up a scene, for example without an asset. The worker is ready for the next
    request."""


class RecordingRefused(OperationFailed, ValueError):
    """A file is no recording of RoboTwin's. The worker is ready for the next request."""


def _failure(kind: str, message: str, traceback: str) -> RoboTwinError:
    """The error of a worker's answer. `kind`: as in the worker's `Failed`, or `failure` of RoboTwin's own code."""
    if kind == "missing":
        return RoboTwinMissing(*message.split("\n"))
    if kind == "failure":
        return RoboTwinError(f"RoboTwin's code failed: {message}\n{traceback}")
    kinds = {"setup": SettingRefused, "broken": SceneBroken, "recording": RecordingRefused}
    return kinds.get(kind, OperationFailed)(message)


class Client:
    """A worker process in RoboTwin's interpreter, in its own process group.

    code: the checkout, or the folder of the pip package. assets: the folder that holds `assets/`.
    """

    def __init__(self, python: str, code: Path, assets: Path, is_package: bool) -> None:
        self._output = tempfile.TemporaryFile()
        variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # also set in the planners' processes
        if is_package:
            variables |= {"ROBOTWIN_ASSETS_ROOT": str(assets), "ASSETS_PATH": str(assets)}
        self._process = subprocess.Popen(
            [python, "-u", _WORKER, "package" if is_package else "checkout", str(code)],
            cwd=assets,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            start_new_session=True,
        )

    def send(self, op: str, arrays: dict[str, np.ndarray] | None = None, **request: Any) -> None:
        with suppress(BrokenPipeError):  # `receive` raises SimulatorLost
            write_message(self._process.stdin, {"op": op} | request, arrays)

    def receive(self, timeout: float) -> Answer:
        """The next answer. Raises RoboTwinError for one that is an error, and SimulatorLost if the process has ended
        or hangs."""
        deadline = time.monotonic() + timeout
        header, arrays = read_message(lambda size: self._read(size, deadline, timeout))
        if "error" in header:
            raise _failure(**header["error"])
        return header, arrays

    def kill(self) -> None:
        """Kills the process and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._output):
            with suppress(BrokenPipeError):
                stream.close()

    def _read(self, size: int, deadline: float, timeout: float) -> bytearray:
        descriptor, parts = self._process.stdout.fileno(), []
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while size:
            if poll.poll(1000 * _POLL):
                part = os.read(descriptor, min(size, 1 << 20))
                if not part:
                    self._lose("ended")
                parts.append(part)
                size -= len(part)
            elif self._process.poll() is not None:  # a child may still hold the pipe
                self._lose("ended")
            elif time.monotonic() > deadline:
                self._lose(f"hung for {timeout:.0f} s")
        return bytearray().join(parts)  # writable, so that arrays in it are

    def _lose(self, what: str) -> NoReturn:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1 if what == "ended" else 0)
        code = self._process.returncode
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - _TAIL))
        tail = self._output.read().decode(errors="replace").strip()
        self.kill()
        if code is None:
            ending = "and was killed"
        else:
            ending = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise SimulatorLost(f"the simulator's process {what} {ending}. It printed last:\n{tail or '(nothing)'}")
