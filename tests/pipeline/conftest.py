"""A pipeline that the tests of a file share, and random numbers."""

import numpy as np
import pytest

from aim_hf.pipeline.pipeline_aim import AIMPipeline

from ..fixtures_pipeline import make_pipeline


@pytest.fixture(scope="module")
def pipe() -> AIMPipeline:
    return make_pipeline()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
