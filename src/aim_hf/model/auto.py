"""Registers AIM with transformers' Auto classes on `import aim_hf`, without importing transformers.

transformers imports the module of an Auto class when the class is first used. AIM is registered right after that
import: at once if the module has been imported already, otherwise by a finder on `sys.meta_path`. The finder lets the
other finders find the module, and registers AIM after the module's own code has run.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .modeling_aim import AIMForWorldAction


def _register_config(module: ModuleType) -> None:
    from .configuration_aim import AIMConfig

    module.AutoConfig.register(AIMConfig.model_type, AIMConfig)


def _register_model(module: ModuleType) -> None:
    from .configuration_aim import AIMConfig

    class AutoAIM:
        """Forwards to [`AIMForWorldAction`], whose module is imported only when a model is made."""

        config_class = AIMConfig

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> "AIMForWorldAction":
            return cls._model_class().from_pretrained(*args, **kwargs)

        @classmethod
        def _from_config(cls, *args: Any, **kwargs: Any) -> "AIMForWorldAction":
            return cls._model_class()._from_config(*args, **kwargs)

        @staticmethod
        def _model_class() -> "type[AIMForWorldAction]":
            from .modeling_aim import AIMForWorldAction

            return AIMForWorldAction

    module.AutoModel.register(AIMConfig, AutoAIM)


def _register_processor(module: ModuleType) -> None:
    from .configuration_aim import AIMConfig
    from .processing_aim import AIMProcessor

    module.AutoProcessor.register(AIMConfig, AIMProcessor)


REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.processing_auto": _register_processor,
}


class _RegisterOnImport(MetaPathFinder):
    """Finds the modules of `REGISTRATIONS` by the other finders, and makes their loaders register AIM."""

    def __init__(self):
        self.found: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in REGISTRATIONS or name in self.found:
            return None
        self.found.add(name)
        spec = find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            REGISTRATIONS[name](module)

        spec.loader.exec_module = exec_module
        return spec


for _name, _register in REGISTRATIONS.items():
    if _name in sys.modules:
        _register(sys.modules[_name])
if not all(_name in sys.modules for _name in REGISTRATIONS):
    sys.meta_path.insert(0, _RegisterOnImport())
