"""No test reaches the real Hub: the libraries read its address when they are imported, so a small one of our own
starts before any of them."""

import gc
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from .forked_python import forked_python, write_script
from .hub_server import Hub

# Tests that run beside others share the cores with them; torch would take all for each.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // workers)))

# openpi's client says that it wants another numpy, so `make setup` keeps it apart from what pip checks.
sys.path.append(str(Path(sys.prefix) / "openpi"))

_home = tempfile.TemporaryDirectory()
_hub = Hub()
for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_MODULES_CACHE"):
    os.environ.pop(name, None)
os.environ |= {
    "HF_ENDPOINT": _hub.address,
    "HF_HOME": _home.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

_constants = sys.modules.get("huggingface_hub.constants")
assert _constants is None or _constants.ENDPOINT == _hub.address, "huggingface_hub was imported before this file"


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Garbage collection, as at the end of each training, scans only objects of tests, not those of imports."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def hub() -> Hub:
    """An empty one, whose repositories nobody has cached."""
    _hub.repos, _hub.log, _hub.fail, _hub.reachable = {}, [], (), True
    _hub.large_files = {}
    return _hub


# Together, what the commands import.
MODULES = ("accelerate.commands.launch", "torch.distributed.run", "aim_hf.training.trainer", "aim_hf.rl.trainer")
MODULES += ("aim_hf.training.samples", "aim_hf.tiny.vae", "aim_hf.tiny.text_encoder", "aim_hf.evaluation.evaluate")
MODULES += ("aim_hf.data.collection", "aim_hf.data.preview", "aim_hf.envs.tabletop")


def pytest_configure(config):
    """Starts the server of the interpreter `python`, which the workers of xdist share: they start later."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        stack = ExitStack()
        config.add_cleanup(stack.close)
        os.environ["FORKED_PYTHON"] = path = stack.enter_context(forked_python(sys.executable, MODULES))
        if path != sys.executable:
            write_script(str(Path(path).with_name("aim-hf")), f'"{path}" -m aim_hf')


@pytest.fixture(scope="session")
def python():
    """The path of an interpreter for subprocesses that are to run a command, not to show that it starts. Beside it
    lies the command aim-hf. What is read at import, such as the Hub's address, is that of the first process."""
    return os.environ["FORKED_PYTHON"]
