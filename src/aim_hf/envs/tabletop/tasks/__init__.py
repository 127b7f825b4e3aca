"""The tasks of the tabletop suite, each named after the RoboTwin task that it mirrors."""

from .base import Task
from .click_bell import ClickBell

TASKS: dict[str, type[Task]] = {
    "click_bell": ClickBell,
}
