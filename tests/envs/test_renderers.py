"""A renderer stays with the process that opened it."""

import pickle

import pytest

from aim_hf.envs.base import SeedRejected
from aim_hf.envs.robotwin import RoboTwinMissing

from .test_tabletop_environment import run_python

TASKS = {"tabletop": "click_bell", "aloha": "transfer_cube"}
FORK = """
import os
from aim_hf.envs import make_environment
from aim_hf.utils.extras import SimulatorFailed

def show(environment):
    return str(environment.reset(3)["observation"]["head_camera"]["rgb"].sum())

environment = make_environment({suite!r}, {task!r})
{before}
if os.fork() == 0:
    for choose in (lambda: environment, lambda: make_environment({suite!r}, {task!r})):
        try:
            told = show(choose())
        except SimulatorFailed as error:
            told = f"{{type(error).__name__}}: {{error}}"
        print(told, flush=True)
    os._exit(0)
os.wait()
print(show(environment))
"""


def pictures_after_a_fork(suite: str, before: str) -> list[str]:
    """Three lines: the forked process shows its parent's environment, then a new one; last, the parent shows its own.
    A line is the sum of a picture, or the error."""
    pytest.importorskip({"tabletop": "sapien", "aloha": "gym_aloha"}[suite])
    result = run_python(FORK.format(suite=suite, task=TASKS[suite], before=before))
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("suite", TASKS)
def test_a_process_forked_from_one_that_renders_is_refused_instead_of_hanging(suite):
    *forked, parent = pictures_after_a_fork(suite, before="show(environment)")
    for told in forked:
        assert told.startswith("RendererForked: process ") and "'spawn' or 'forkserver'" in told
    assert int(parent) > 0


def test_aloha_that_has_rendered_nothing_can_be_forked():
    """As the workers of Gymnasium's AsyncVectorEnv are, which makes an environment for its spaces first."""
    inherited, own, parent = pictures_after_a_fork("aloha", before="")
    assert inherited == own == parent and int(parent) > 0


@pytest.mark.parametrize(
    "error, text",
    [
        (SeedRejected(7, "no way"), "seed 7 is rejected: no way"),
        (RoboTwinMissing("a is gone", "b too"), "RoboTwin can't run:\n- a is gone.\n- b too."),
    ],
)
def test_an_error_reaches_another_process_as_it_was(error, text):
    sent = pickle.loads(pickle.dumps(error))
    assert str(sent) == str(error) == text and vars(sent) == vars(error)
