"""A bimanual robot of primitives at a table, in miniature: SAPIEN 3 alone, nothing to download."""

from .environment import TabletopEnvironment
from .tasks import TASKS

__all__ = ["TASKS", "TabletopEnvironment"]
