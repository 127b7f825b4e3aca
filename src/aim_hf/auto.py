"""AIM among transformers' Auto classes, from the first import of the package on."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_aim import AIMConfig
from .processing_aim import AIMProcessor


class AutoAIM:
    """What `AutoModel` calls for a configuration of AIM. It hands on to [`AIMForWorldAction`], whose module takes
    seconds to import, only when a model is really made: programs that make none import the package too."""

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


AutoConfig.register(AIMConfig.model_type, AIMConfig)
AutoModel.register(AIMConfig, AutoAIM)
AutoProcessor.register(AIMConfig, AIMProcessor)
