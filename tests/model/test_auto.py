"""AIM among transformers' Auto classes, whichever is imported first, at no cost to whoever needs no transformers."""

import subprocess
import sys

import pytest

LIGHT = """
import sys, aim_hf
heavy = {"torch", "transformers", "diffusers", "numpy", "datasets", "sapien"} & set(sys.modules)
assert not heavy, heavy
"""
PROCESSOR_FIRST = (
    LIGHT
    + """
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(aim_hf.AIM_TINY, subfolder="processor")
from transformers import AutoConfig, AutoModel
"""
)
TRANSFORMERS_FIRST = """
from transformers import AutoConfig
import aim_hf
from transformers import AutoModel, AutoProcessor
processor = AutoProcessor.from_pretrained(aim_hf.AIM_TINY, subfolder="processor")
"""
ALL_KNOW_AIM = """
assert type(processor) is aim_hf.AIMProcessor
config = AutoConfig.from_pretrained(aim_hf.AIM_TINY, subfolder="model")
assert type(config) is aim_hf.AIMConfig
assert AutoModel._model_mapping[type(config)].__name__ == "AutoAIM"
"""


@pytest.mark.parametrize("first", [PROCESSOR_FIRST, TRANSFORMERS_FIRST], ids=["processor", "transformers"])
def test_each_auto_class_knows_aim(first):
    done = subprocess.run([sys.executable, "-c", first + ALL_KNOW_AIM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_are_completed_before_they_are_imported():
    code = LIGHT + "assert set(aim_hf.__all__) <= set(dir(aim_hf)) and 'torch' not in sys.modules\n"
    code += "from importlib.metadata import version; assert aim_hf.__version__ == version('aim-hf')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_list_of_commands_needs_nothing():
    code = LIGHT + "from aim_hf.commands import run; run([]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "evaluate" in done.stdout and "train-grpo" in done.stdout
