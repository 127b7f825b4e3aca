"""AIM on Hugging Face: a robot world-action model that predicts where it will act."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .model import auto  # noqa: F401  registers AIM with transformers' Auto classes

# Imported on first access: simulators and the command line import this package without torch and transformers.
_MODULES = {
    "AIMConfig": ".model.configuration_aim",
    "AIMForWorldAction": ".model.modeling_aim",
    "AIMOutput": ".model.modeling_aim",
    "AIMPipeline": ".pipeline.pipeline_aim",
    "AIMPipelineOutput": ".pipeline.pipeline_output",
    "AIMProcessor": ".model.processing_aim",
    "AIMSession": ".pipeline.session",
    "SamplingConfig": ".pipeline.sampling_config",
    "VideoCodec": ".pipeline.codec",
    "t_pose_canvas": ".model.canvas",
}
__all__ = sorted([*_MODULES, "AIM_TINY"])

# The checkpoint of the project: inside the package in a wheel (setup.py), beside `src/` in a checkout.
_INSTALLED = Path(__file__).parent / "checkpoints" / "aim-tiny"
AIM_TINY = str(_INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "checkpoints" / "aim-tiny")


# Module names in folders saved by aim-hf 0.1.0 -> current module names.
_MOVED = {
    "aim_hf.modeling_aim": "aim_hf.model.modeling_aim",
    "aim_hf.pipeline_aim": "aim_hf.pipeline.pipeline_aim",
    "aim_hf.processing_aim": "aim_hf.model.processing_aim",
}


class _Moved(ModuleType):
    """Forwards attributes to the current module, which is imported on first access."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # tools look up dunder attributes in all modules, which must not import torch
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MOVED[self.__name__]), name)


sys.modules |= {name: _Moved(name) for name in _MOVED}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("aim-hf")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
