"""The suites tabletop and aloha as environments: `gymnasium.make("aim_tabletop/click_bell-v0")`, and
`--env.type=aim_tabletop` or `aim_aloha` of LeRobot's commands; and a tabletop scene as a robot,
`--robot.type=aim_tabletop`, with `--teleop.type=aim_tabletop_expert`."""

from importlib.metadata import version

from packaging.version import Version

OLDEST_LEROBOT = "0.6.1"
if Version(version("lerobot")) < Version(OLDEST_LEROBOT):
    raise ImportError(
        f"lerobot is {version('lerobot')}; lerobot_env_aim needs at least {OLDEST_LEROBOT}: pip install --upgrade "
        "lerobot."
    )

from .config_simulated import SimulatedExpertConfig, SimulatedRobotConfig  # noqa: E402
from .configuration_aim import AIMAlohaEnv, AIMTabletopEnv  # noqa: E402
from .environments import AlohaEnv, TabletopEnv, register_tasks  # noqa: E402
from .simulated import SimulatedExpert, SimulatedRobot  # noqa: E402

register_tasks()

__all__ = [
    "AIMAlohaEnv",
    "AIMTabletopEnv",
    "AlohaEnv",
    "SimulatedExpert",
    "SimulatedExpertConfig",
    "SimulatedRobot",
    "SimulatedRobotConfig",
    "TabletopEnv",
]
