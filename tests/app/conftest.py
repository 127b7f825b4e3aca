"""The checkpoint of the repository, and its simulators."""

from pathlib import Path

import pytest

from aim_hf.app.episode import LiveRollouts, Simulators
from aim_hf.pipeline.pipeline_aim import AIMPipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rollouts():
    simulators = Simulators(limit=2)
    yield LiveRollouts(AIMPipeline.from_pretrained(ROOT / "checkpoints" / "aim-tiny"), simulators)
    simulators.close()
