"""The robotwin suite: an adapter to RoboTwin 2.0, which the user has installed."""

from .client import RoboTwinError, RoboTwinMissing, SimulatorLost
from .environment import JointPaths, RoboTwinEnvironment, add_robotwin_arguments, chosen_settings
from .tasks import DEVIATIONS, TASKS, deviations

__all__ = [
    "DEVIATIONS",
    "JointPaths",
    "TASKS",
    "RoboTwinEnvironment",
    "RoboTwinError",
    "RoboTwinMissing",
    "SimulatorLost",
    "add_robotwin_arguments",
    "chosen_settings",
    "deviations",
]
