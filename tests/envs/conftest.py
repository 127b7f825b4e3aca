import pytest

from aim_hf.envs.robotwin.standin import write_assets

from ..forked_python import forked_python
from .fixtures_robotwin_runtime import PYTHON


@pytest.fixture(scope="session")
def assets(tmp_path_factory):
    """The stand-ins for RoboTwin's assets."""
    folder = tmp_path_factory.mktemp("assets") / "stand-ins"
    write_assets(folder)
    return folder


@pytest.fixture(scope="session")
def robotwin_python():
    """RoboTwin's interpreter, which has imported what RoboTwin does."""
    with forked_python(str(PYTHON), ("torch", "toppra", "gymnasium", "trimesh", "sapien.core")) as path:
        yield path


@pytest.fixture
def robotwin(monkeypatch, assets, robotwin_python):
    """RoboTwin's package with stand-ins, on a CPU."""
    values = {"PYTHON": robotwin_python, "ASSETS_ROOT": assets, "SHADER": "trivial", "PLANNER": "cpu"}
    for name, value in values.items():
        monkeypatch.setenv(f"ROBOTWIN_{name}", str(value))
    monkeypatch.delenv("ROBOTWIN_ROOT", raising=False)
