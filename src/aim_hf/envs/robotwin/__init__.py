"""The robotwin suite: an adapter to a RoboTwin 2.0 checkout that the user has installed."""

from .client import RoboTwinError, RoboTwinMissing, SimulatorLost
from .environment import RoboTwinEnvironment, add_robotwin_arguments
from .tasks import DEVIATIONS, TASKS

__all__ = [
    "DEVIATIONS",
    "TASKS",
    "RoboTwinEnvironment",
    "RoboTwinError",
    "RoboTwinMissing",
    "SimulatorLost",
    "add_robotwin_arguments",
]
