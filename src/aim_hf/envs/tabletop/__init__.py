"""The tabletop suite: a bimanual robot of primitives at a table. It needs only SAPIEN 3 and no downloads."""

from ...utils.extras import extra

with extra("sim"):
    import sapien  # noqa: F401

from .environment import TabletopEnvironment  # noqa: E402
from .tasks import TASKS  # noqa: E402

__all__ = ["TASKS", "TabletopEnvironment"]
