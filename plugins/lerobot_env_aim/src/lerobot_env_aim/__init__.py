"""The suites tabletop and aloha as environments of LeRobot's commands, `--env.type=aim_tabletop` or `aim_aloha`; and a
tabletop scene as a robot, `--robot.type=aim_tabletop`, with `--teleop.type=aim_tabletop_expert`."""

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
from .simulated import SimulatedExpert, SimulatedRobot  # noqa: E402

__all__ = [
    "AIMAlohaEnv",
    "AIMTabletopEnv",
    "SimulatedExpert",
    "SimulatedExpertConfig",
    "SimulatedRobot",
    "SimulatedRobotConfig",
]
