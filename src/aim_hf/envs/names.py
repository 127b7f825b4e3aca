"""Names of tasks and splits, known without a simulator, so that commands can check them before importing one."""

from collections.abc import Iterable

from ..utils.checks import check_choice
from .base import SPLITS

TABLETOP = (
    "click_bell",
    "place_a2b_left",
    "place_a2b_right",
    "stack_blocks_two",
    "lift_pot",
    "handover_block",
    "press_stapler",
    "turn_switch",
    "move_pillbottle_pad",
    "pick_dual_bottles",
    "stack_blocks_three",
    "blocks_ranking_rgb",
)
ROBOTWIN = (
    "adjust_bottle",
    "beat_block_hammer",
    "blocks_ranking_rgb",
    "blocks_ranking_size",
    "click_alarmclock",
    "click_bell",
    "dump_bin_bigbin",
    "grab_roller",
    "handover_block",
    "handover_mic",
    "hanging_mug",
    "lift_pot",
    "move_can_pot",
    "move_pillbottle_pad",
    "move_playingcard_away",
    "move_stapler_pad",
    "open_laptop",
    "open_microwave",
    "pick_diverse_bottles",
    "pick_dual_bottles",
    "place_a2b_left",
    "place_a2b_right",
    "place_bread_basket",
    "place_bread_skillet",
    "place_burger_fries",
    "place_can_basket",
    "place_cans_plasticbox",
    "place_container_plate",
    "place_dual_shoes",
    "place_empty_cup",
    "place_fan",
    "place_mouse_pad",
    "place_object_basket",
    "place_object_scale",
    "place_object_stand",
    "place_phone_stand",
    "place_shoe",
    "press_stapler",
    "put_bottles_dustbin",
    "put_object_cabinet",
    "rotate_qrcode",
    "scan_object",
    "shake_bottle",
    "shake_bottle_horizontally",
    "stack_blocks_three",
    "stack_blocks_two",
    "stack_bowls_three",
    "stack_bowls_two",
    "stamp_seal",
    "turn_switch",
)
ALOHA = ("transfer_cube", "insertion")

TASKS = {"tabletop": TABLETOP, "robotwin": ROBOTWIN, "aloha": ALOHA}  # suite -> tasks

# Splits of tabletop in which one axis of Easy's scenes is perturbed, such as camera-2; see tabletop/perturbations.py.
AXES = ("light", "texture", "clutter", "camera", "height", "color", "size", "wording", "delay")
STRENGTHS = (1, 2, 3)
PERTURBATIONS = tuple(f"{axis}-{strength}" for axis in AXES for strength in STRENGTHS)


def check_tasks(suite: str, tasks: Iterable[str]) -> None:
    """Raises ValueError for an unknown suite, and for tasks that it hasn't."""
    known = TASKS[check_choice("suite", suite, TASKS)]
    if unknown := [task for task in dict.fromkeys(tasks) if task not in known]:
        raise ValueError(f"no task {', '.join(unknown)} in suite {suite!r}; choose from {', '.join(known)}.")


def splits_of(suite: str) -> tuple[str, ...]:
    """The splits of a suite; tabletop has `PERTURBATIONS` besides."""
    return ("easy",) if suite == "aloha" else SPLITS


def check_split(suite: str, split: str) -> str:
    """The split. Raises ValueError if the suite has no such split."""
    splits = splits_of(suite)
    if split in splits or (suite == "tabletop" and split in PERTURBATIONS):
        return split
    choices = ", ".join(splits)
    if suite == "tabletop":
        choices += f", or a perturbation: one of {', '.join(AXES)} with a strength from 1 to 3, such as camera-2"
    elif split in PERTURBATIONS:
        choices += "; perturbations are of suite 'tabletop' alone"
    raise ValueError(f"split={split!r} is unknown in suite {suite!r}: choose one of {choices}.")
