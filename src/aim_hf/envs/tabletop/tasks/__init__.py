"""The tasks of the tabletop suite, each named after the RoboTwin task that it mirrors."""

from .base import Task
from .blocks_ranking_rgb import BlocksRankingRGB
from .click_bell import ClickBell
from .handover_block import HandoverBlock
from .lift_pot import LiftPot
from .move_pillbottle_pad import MovePillbottlePad
from .pick_dual_bottles import PickDualBottles
from .place_a2b import PlaceA2BLeft, PlaceA2BRight
from .press_stapler import PressStapler
from .stack_blocks import StackBlocksThree, StackBlocksTwo
from .turn_switch import TurnSwitch

TASKS: dict[str, type[Task]] = {
    "click_bell": ClickBell,
    "place_a2b_left": PlaceA2BLeft,
    "place_a2b_right": PlaceA2BRight,
    "stack_blocks_two": StackBlocksTwo,
    "lift_pot": LiftPot,
    "handover_block": HandoverBlock,
    "press_stapler": PressStapler,
    "turn_switch": TurnSwitch,
    "move_pillbottle_pad": MovePillbottlePad,
    "pick_dual_bottles": PickDualBottles,
    "stack_blocks_three": StackBlocksThree,
    "blocks_ranking_rgb": BlocksRankingRGB,
}
