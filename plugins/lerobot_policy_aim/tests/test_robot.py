"""LeRobot's own commands let a policy drive a robot, here a simulated one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lerobot_policy_aim import AIMPolicy, make_aim_pre_post_processors

from aim_hf import AIM_TINY

ROBOT = ["--robot.type=aim_tabletop", "--robot.task=click_bell", "--robot.id=simulated"]
ENDED = "The episode has ended"


@pytest.fixture(scope="module")
def aim_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoints/aim-tiny` as a policy folder."""
    folder = tmp_path_factory.mktemp("policies") / "aim-tiny"
    policy = AIMPolicy.from_pipeline(AIM_TINY, num_inference_steps=1, num_action_inference_steps=1)
    policy.save_pretrained(folder)
    for processor in make_aim_pre_post_processors(policy.config):
        processor.save_pretrained(folder)
    return folder


def start(module: str, *options: str, log: Path) -> subprocess.Popen:
    with log.open("w") as file:
        command = [sys.executable, "-u", "-m", module, *options]
        # A shell's background jobs, and what they start, ignore Ctrl-C, which ends the client and the rollout here.
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def wait_for(text: str, log: Path, process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of LeRobot's asynchronous policy server, which knows AIM."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    log = tmp_path / "server.log"
    options = ["--host=127.0.0.1", f"--port={port}", "--fps=10"]
    process = start("lerobot_policy_aim.policy_server", *options, log=log)
    try:
        wait_for("PolicyServer started", log, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_the_asynchronous_server_drives_a_robot(aim_tiny, server, tmp_path):
    log = tmp_path / "client.log"
    options = [f"--server_address={server}", "--policy_type=aim", f"--pretrained_name_or_path={aim_tiny}"]
    options += ["--policy_device=cpu", "--actions_per_chunk=8", "--fps=10", "--task=Click the bell."]
    client = start("lerobot.async_inference.robot_client", *ROBOT, *options, log=log)
    try:
        wait_for(ENDED, log, client)
    finally:
        client.send_signal(signal.SIGINT)
        client.wait(60)
    assert "Error" not in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize("inference", ["sync", "rtc"])
def test_a_rollout_drives_a_robot(aim_tiny, tmp_path, inference):
    options = [f"--policy.path={aim_tiny}", "--policy.device=cpu", "--task=Click the bell.", "--fps=12.5"]
    options += [f"--inference.type={inference}", "--duration=40", "--return_to_initial_position=false"]
    rollout = start("lerobot.scripts.lerobot_rollout", *ROBOT, *options, log=tmp_path / "log")
    try:
        wait_for(ENDED, tmp_path / "log", rollout)
    finally:
        rollout.send_signal(signal.SIGINT)
        rollout.wait(60)
    assert rollout.returncode == 0


def test_a_robot_without_the_cameras_of_the_policy_is_refused(aim_tiny, tmp_path):
    renamed = tmp_path / "policy"
    policy = AIMPolicy.from_pipeline(AIM_TINY, {"head_camera": "observation.images.top"})
    policy.save_pretrained(renamed)
    for processor in make_aim_pre_post_processors(policy.config):
        processor.save_pretrained(renamed)
    options = [f"--policy.path={renamed}", "--policy.device=cpu", "--duration=1"]
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_rollout", *ROBOT, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.returncode != 0 and "Policy expects: " in done.stderr and "observation.images.top" in done.stderr
