"""RoboTwin's tasks and seeds, as far as they are known without its checkout."""

from __future__ import annotations

from ..names import ROBOTWIN
from ..seeds import SEED_RANGES, check_seed

TASKS = ROBOTWIN

# Task -> attribute of the object that closed fingers press or push along, and "press" or "push". In all other tasks,
# objects are grasped, or moved by a grasped object.
TARGETS = {
    "click_alarmclock": ("alarm", "press"),
    "click_bell": ("bell", "press"),
    "press_stapler": ("stapler", "press"),
    "turn_switch": ("switch", "push"),
}

CONFIGS = {"easy": "demo_clean", "hard": "demo_randomized"}  # by split

# Purpose -> RoboTwin's own first seed. Its evaluation with `seed` s begins at 100,000 (1 + s).
_FIRST_SEEDS = {"evaluation": 100_000, "rl": 1_000_000_000, "validation": 1_100_000_000}


# Differences between an evaluation through this adapter and RoboTwin's own script.
DEVIATIONS = (
    "An episode's sentence is drawn by its seed from RoboTwin's own; RoboTwin draws one without a seed.",
    "In dump_bin_bigbin and put_bottles_dustbin the region of the clutter is that of a first scene; in RoboTwin's "
    "script it shifts from scene to scene.",
    "The front camera, which AIM doesn't use, isn't rendered.",
    "Scenes are spread over processes, each with its own simulator; RoboTwin's script runs all in one.",
)


# Settings of a simulator, by their names in its results: those of official runs.
OFFICIAL = {"shader": "rt", "embodiment": "aloha-agilex", "planner": "curobo"}


def deviations(simulator: dict[str, str]) -> list[str]:
    """The differences of a simulator from that of official runs, a sentence each, as far as its results tell."""
    found, told = [], OFFICIAL | simulator
    if (shader := told["shader"]) != OFFICIAL["shader"]:
        found.append(f"Pictures are rendered with the shader pack {shader}; official ones are ray-traced.")
    if (embodiment := told["embodiment"]) != OFFICIAL["embodiment"]:
        found.append(f"The embodiment is {embodiment}; that of the published results is aloha-agilex.")
    if (planner := told["planner"]) != OFFICIAL["planner"]:
        found.append(f"The planner {planner} finds the paths, of the expert and to targets of mode ee, not CuRobo.")
    if (assets := simulator.get("assets", "")).startswith("stand-in"):
        found.append(f"The assets are this project's primitives ({assets}), so no rate compares with published ones.")
    return found


def simulator_seed(seed: int) -> int:
    """RoboTwin's own seed for one of `envs.seeds.SEED_RANGES`.

    train: the same number, because RoboTwin's own collection counts from 0. Seeds from 100,000 on belong to RoboTwin's
        evaluation and are refused.
    evaluation: 100,000 plus the offset in the range. Offset 0 is the first seed of RoboTwin's own evaluation, and
        offset 100,000 s the first seed of its `seed` s.
    rl, validation: 1,000,000,000 or 1,100,000,000 plus the offset in the range, beyond all evaluation seeds.

    Raises ValueError for a seed outside these.
    """
    seed = check_seed(seed)
    for purpose, first in _FIRST_SEEDS.items():
        if seed in SEED_RANGES[purpose]:
            return seed - SEED_RANGES[purpose].start + first
    if seed >= _FIRST_SEEDS["evaluation"]:
        raise ValueError(
            f"seed={seed} is for training, but RoboTwin evaluates on its seeds from {_FIRST_SEEDS['evaluation']} on: "
            "train on seeds below that."
        )
    return seed


def evaluation_seed(simulator_seed: int) -> int:
    """The seed for evaluation whose scene is that of RoboTwin's own seed; the inverse of `simulator_seed`."""
    return SEED_RANGES["evaluation"].start + simulator_seed - _FIRST_SEEDS["evaluation"]
