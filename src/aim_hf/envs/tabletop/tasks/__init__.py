"""The tasks of the tabletop suite, each named after the RoboTwin task that it mirrors."""

from .base import Task
from .click_bell import ClickBell
from .handover_block import HandoverBlock
from .lift_pot import LiftPot
from .place_a2b import PlaceA2BLeft, PlaceA2BRight
from .stack_blocks_two import StackBlocksTwo

TASKS: dict[str, type[Task]] = {
    "click_bell": ClickBell,
    "place_a2b_left": PlaceA2BLeft,
    "place_a2b_right": PlaceA2BRight,
    "stack_blocks_two": StackBlocksTwo,
    "lift_pot": LiftPot,
    "handover_block": HandoverBlock,
}
