"""Every code block of the page on LeRobot is run, with smaller numbers, or says why it isn't."""

import sys

import pytest

from tests.docs.test_docs import Left, Run, blocks, place, run  # noqa: F401  `place` is a fixture

PAGE = "docs/lerobot.md"
ACT = "--policy.pretrained_backbone_weights=null --policy.dim_model=32 --policy.n_heads=2 --policy.dim_feedforward=32"
FEW = {"--eval.n_episodes=50": "--eval.n_episodes=1"}
SCENARIO: list[Run | Left] = [
    Left("it installs, as `make test-lerobot` does"),
    Run({"--episodes 100": "--episodes 1"}),
    Run({"--batch_size=8 --steps=5000": "--batch_size=1 --steps=1 --num_workers=0"}),
    Run(FEW | {"--env.task=click_bell,lift_pot": "--env.task=click_bell"}),
    Run(
        FEW
        | {"--batch_size=8 --steps=20000": "--batch_size=2 --steps=1 --num_workers=0"}
        | {"--policy.type=act": f"--policy.type=act {ACT}", "--env.task=click_bell,lift_pot": "--env.task=click_bell"}
    ),
    Run({"--duration=20": "--duration=2"}),
    Left("it serves until it is stopped; test_robot.py runs it"),
    Run({"--dataset.push_to_hub=false": "--dataset.push_to_hub=false --play_sounds=false"}),
    Run({"--episodes 50": "--episodes 1"}),
]


@pytest.mark.usefixtures("place")
def test_every_block_runs():
    found = blocks(PAGE)
    assert len(found) == len(SCENARIO), "each block needs a Run, or a Left with its reason"
    run(PAGE, found, SCENARIO, names={}, port="", python=sys.executable)
