"""AIM among transformers' Auto classes, from `import aim_hf` on, which imports no transformers for it.

Each Auto class lives in a module of transformers that is imported when somebody first asks for the class. So AIM is
registered right after that import: at once where it has happened, otherwise by a finder on `sys.meta_path`, which lets
the others find the module and runs the registration behind the module's own code.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


def _register_config(module) -> None:
    from .configuration_aim import AIMConfig

    module.AutoConfig.register(AIMConfig.model_type, AIMConfig)


def _register_model(module) -> None:
    from .configuration_aim import AIMConfig

    class AutoAIM:
        """Hands on to [`AIMForWorldAction`], whose module is imported when a model is really made."""

        config_class = AIMConfig

        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            return cls._model_class().from_pretrained(*args, **kwargs)

        @classmethod
        def _from_config(cls, *args, **kwargs):
            return cls._model_class()._from_config(*args, **kwargs)

        @staticmethod
        def _model_class():
            from .modeling_aim import AIMForWorldAction

            return AIMForWorldAction

    module.AutoModel.register(AIMConfig, AutoAIM)


def _register_processor(module) -> None:
    from .configuration_aim import AIMConfig
    from .processing_aim import AIMProcessor

    module.AutoProcessor.register(AIMConfig, AIMProcessor)


REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.processing_auto": _register_processor,
}


class _RegisterOnImport(MetaPathFinder):
    """Finds the modules of `REGISTRATIONS` as everybody else does, each once, and has its loader register AIM."""

    def find_spec(self, name, path=None, target=None):
        if name not in REGISTRATIONS or name in self.found:
            return None
        self.found.add(name)
        spec = find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            REGISTRATIONS[name](module)

        spec.loader.exec_module = exec_module
        return spec

    def __init__(self):
        self.found: set[str] = set()


for _name, _register in REGISTRATIONS.items():
    if _name in sys.modules:
        _register(sys.modules[_name])
if not all(_name in sys.modules for _name in REGISTRATIONS):
    sys.meta_path.insert(0, _RegisterOnImport())
