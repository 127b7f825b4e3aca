"""Loads and saves pipelines: folders of AIM, Wan and LingBot-VA. Every component is checked to be complete."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.quantizers import PipelineQuantizationConfig
from transformers import (
    AutoConfig,
    AutoModelForTextEncoding,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
    TorchAoConfig,
)

from ..model.checkpoint import (
    DOWNLOAD_KWARGS,
    Shapes,
    as_device,
    as_dtype,
    check_all_loaded,
    check_shapes,
    component_tensors,
    local_folder,
    stored_tensors,
)
from ..model.configuration_aim import AIMConfig
from ..model.modeling_aim import AIMForWorldAction
from ..model.processing_aim import AIMProcessor, robotwin_processor
from ..utils.extras import extra
from ..utils.files import written_folder
from ..utils.versions import PIPELINE_DTYPE
from .loading_config import LoadingConfig
from .sampling import new_schedulers

# Modules of the model that aren't quantized, as regular expressions: the video stream's condition embedder and output
# layer, and all action modules. They are small.
NOT_QUANTIZED = ["condition_embedder", "proj_out", r"(action|history)_head", r"blocks\.\d+\.(action|history)"]
# Base class of each component; a model may be wrapped by PEFT or torch.compile.
COMPONENTS = {
    "vae": torch.nn.Module,
    "text_encoder": torch.nn.Module,
    "processor": ProcessorMixin,
    "model": torch.nn.Module,
    "scheduler": FlowMatchEulerDiscreteScheduler,
    "action_scheduler": FlowMatchEulerDiscreteScheduler,
}

# Component with weights -> a function that makes it from its folder's config.json, without the weights.
OF_CONFIG = {
    "vae": lambda folder: AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(folder)),
    "text_encoder": lambda folder: AutoModelForTextEncoding.from_config(AutoConfig.from_pretrained(folder)),
    "model": lambda folder: AIMForWorldAction(AIMConfig.from_pretrained(folder)),
}


def check_stored(folder: Path, stored: Mapping[str, Shapes]) -> None:
    """Checks the shapes of stored tensors, component -> shapes, against the components' configurations.

    Raises:
        ValueError: naming component and tensor.
    """
    for name, make in OF_CONFIG.items():
        if name in stored:
            with torch.device("meta"):
                component = make(folder / name)
            check_shapes(component, stored[name], source=str(folder / name))


def check_components(components: Mapping[str, Any]) -> None:
    """Raises ValueError for a component that is None or no instance of its class in `COMPONENTS`."""
    for name, component in components.items():
        if not isinstance(component, COMPONENTS[name]):
            raise ValueError(
                f"{name} is {'None' if component is None else type(component).__name__}; expected a "
                f"{COMPONENTS[name].__name__}. A pipeline needs all of {', '.join(COMPONENTS)}."
            )


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE of a pipeline folder, AIM's or Wan's, in float32.

    Raises:
        OSError: for a damaged, missing or pickled file, which it names.
        ValueError: for tensors that are missing, unknown or of another shape.
    """
    return _load_checked(folder, "vae", AutoencoderKLWan, torch_dtype=torch.float32)


def load_text_encoder(folder: Path, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The text encoder of a pipeline folder, AIM's or Wan's, in `dtype`; as stored if not given or "auto". Raises as
    `load_vae`."""
    dtype = "auto" if dtype in (None, "auto") else as_dtype(dtype)
    return _load_checked(folder, "text_encoder", AutoModelForTextEncoding, dtype=dtype)


def _load_checked(folder: Path, name: str, kind: type, **kwargs: Any) -> torch.nn.Module:
    stored = component_tensors(folder, [name])
    check_stored(folder, stored)
    module = kind.from_pretrained(folder / name, use_safetensors=True, **kwargs)
    check_all_loaded(module, stored[name], source=str(folder / name))
    return module


def component_dtypes(
    dtype: torch.dtype | str | Mapping[str, torch.dtype | str] | None,
) -> dict[str, dict[str, torch.dtype | str]]:
    """The dtype argument of diffusers' `from_pretrained`, by its name. It always sets the VAE's: otherwise diffusers
    takes torch's default, in which a trained VAE may be wrong. Raises ValueError for an unknown component or dtype."""
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        dtype = {}
    dtypes = dict(dtype) if isinstance(dtype, Mapping) else {"default": dtype}
    if unknown := sorted(dtypes.keys() - {*COMPONENTS, "default"}):
        raise ValueError(f"dtype has {unknown}; expected some of {', '.join(COMPONENTS)} and default.")
    given = {name: as_dtype(of_component) for name, of_component in dtypes.items()}
    return {PIPELINE_DTYPE: {"vae": torch.float32, "default": "auto"} | given}


def quantization_config(quantization: str, dtype: str | None) -> PipelineQuantizationConfig:
    """The argument `quantization_config` of `AIMPipeline.from_pretrained` for a `quantization` of [`LoadingConfig`].

    Args:
        dtype: of computations with 4-bit matrices; float32 if not given.

    Raises:
        MissingExtra: without the quantizer's package.
    """
    with extra("quantization"):
        if quantization == "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=NOT_QUANTIZED)
        else:
            import bitsandbytes  # noqa: F401

            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=quantization,
                bnb_4bit_compute_dtype=torch.float32 if dtype in (None, "auto") else as_dtype(dtype),
                llm_int8_skip_modules=NOT_QUANTIZED,
            )
    return PipelineQuantizationConfig(quant_mapping={"model": config, "text_encoder": config})


class AIMLoaderMixin:
    """Loads and saves an [`AIMPipeline`]: from its own folder, or from a video model's."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        dtype: torch.dtype | str | Mapping[str, torch.dtype | str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a pipeline folder or a Hub repository, and checks that it is complete.

        Args:
            pretrained_model_name_or_path: folder or repo id.
            subfolder: of the pipeline, in a folder or repository that holds several.
            dtype: of the model and the text encoder, a `torch.dtype` or its name; as stored if not given or "auto".
                The VAE stays in float32, as in Wan, unless a dict names it: `{"vae": torch.bfloat16, "default": ...}`.
            kwargs: as in `DiffusionPipeline.from_pretrained`: `revision`, `token`, `cache_dir`, `local_files_only`,
                `quantization_config`, `device_map` with the name of one device, components to use instead of the
                stored ones ...

        Raises:
            OSError: for a damaged, truncated or pickled file, which it names, or a repository that can't be read.
            ValueError: for tensors that are missing, unknown or of another shape, which it names, components that
                don't fit, an unknown dtype, or a device map that spreads components.
        """
        if kwargs.get("device_map") in ("balanced", "auto"):
            raise ValueError(
                f"device_map is {kwargs['device_map']!r}; expected one device, such as 'cuda': accelerate's hooks "
                "move a component only for its `forward`, and AIM calls other methods too. Move the text encoder by "
                "`pipe.text_encoder.to(...)`."
            )
        check_components({name: kwargs[name] for name in COMPONENTS if name in kwargs})
        dtypes = component_dtypes(kwargs.pop("torch_dtype", None) if dtype is None else dtype)
        download_kwargs = {name: kwargs.pop(name) for name in DOWNLOAD_KWARGS if name in kwargs}
        folder = local_folder(pretrained_model_name_or_path, subfolder, **download_kwargs) / (subfolder or "")
        stored = stored_tensors(folder, given=kwargs)
        check_stored(folder, stored)
        pipe = super().from_pretrained(str(folder), **(kwargs | dtypes | {"use_safetensors": True}))
        for name, tensors in stored.items():
            check_all_loaded(getattr(pipe, name), tensors, source=str(folder / name))
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

    @classmethod
    def load(cls, name_or_path: str | os.PathLike, device: str | torch.device, config: LoadingConfig) -> Self:
        """`from_pretrained`, then moves the pipeline to `device`, offloads and compiles it as `config` says.

        Raises:
            MissingExtra: without the package of the `quantization`.
            OSError, ValueError: as `from_pretrained`; for an attention that isn't there, an unknown device, an offload
                without a GPU, or widths that "nf4" doesn't fit on a CPU.
        """
        device = as_device(device)
        text_encoder_device = as_device(config.text_encoder_device or device)
        if config.offload and device.type == "cpu":
            raise ValueError(f"offload is {config.offload!r} and the device a CPU; there is no GPU to relieve.")
        quantized = {}
        if config.quantization:
            quantized = {"quantization_config": quantization_config(config.quantization, config.dtype)}
        pipe = cls.from_pretrained(name_or_path, dtype=config.dtype, **quantized)
        width = pipe.model.config.hidden_size
        if config.quantization == "nf4" and device.type == "cpu" and width % 64:
            raise ValueError(f"quantization is 'nf4' and the width {width}; on a CPU it must be divisible by 64.")
        if config.attn_implementation:
            try:
                pipe.model.set_attn_implementation(config.attn_implementation)
            except ImportError as error:
                raise ValueError(f"attn_implementation is {config.attn_implementation!r}: {error}") from error
        if config.offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif config.offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            # One by one: a text encoder that stays on the CPU never needs room on the GPU.
            pipe.text_encoder.to(text_encoder_device)
            pipe.vae.to(device)
            pipe.model.to(device)
        if config.compile_blocks:
            pipe.model.compile_blocks(mode=config.compile_blocks)
        return pipe

    @classmethod
    def from_wan(cls, name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """A new AIM from a Wan pipeline: it keeps the VAE and text encoder, and its video stream has the weights of
        the transformer (see [`AIMForWorldAction.from_wan`]). It must be trained: its action head and value maps are
        new.

        Args:
            name_or_path: folder or repo id in diffusers' layout, such as `Wan-AI/Wan2.2-TI2V-5B-Diffusers` or
                `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`.
            dtype: of the model and the text encoder, a `torch.dtype` or its name; as stored if not given or "auto".
                The VAE stays in float32, as in Wan.
            processor: the [`AIMProcessor`], with the text encoder's tokenizer; for RoboTwin's robots if not given.
            kwargs: fields of [`AIMConfig`] that the video model doesn't determine, and download arguments (`revision`,
                `token` ...).

        Raises:
            OSError: for a damaged or missing file, which it names.
            ValueError: for tensors that are missing, unknown or of another shape, or components that don't fit.
        """
        return cls._from_video_model(AIMForWorldAction.from_wan, name_or_path, **kwargs)

    @classmethod
    def from_lingbot_va(cls, name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """As `from_wan`, from LingBot-VA; see [`AIMForWorldAction.from_lingbot_va`]."""
        return cls._from_video_model(AIMForWorldAction.from_lingbot_va, name_or_path, **kwargs)

    @classmethod
    def _from_video_model(
        cls,
        load_model: Callable[..., AIMForWorldAction],
        name_or_path: str | os.PathLike,
        dtype: torch.dtype | str | None = None,
        processor: AIMProcessor | None = None,
        **kwargs: Any,
    ) -> Self:
        download = {name: kwargs.pop(name) for name in DOWNLOAD_KWARGS if name in kwargs}
        folder = local_folder(name_or_path, **download)
        if processor is None:
            processor = robotwin_processor(AutoTokenizer.from_pretrained(folder / "tokenizer"))
        kwargs.setdefault("action_dim", processor.action_dim)
        vae, text_encoder = load_vae(folder), load_text_encoder(folder, dtype)
        model = load_model(folder, dtype=dtype, **kwargs)
        return cls(
            vae=vae,
            text_encoder=text_encoder,
            processor=processor,
            model=model,
            **new_schedulers(model.config),
        )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As `DiffusionPipeline.save_pretrained`, but the folder appears only once it is complete, and shards have at
        most 5 GB (`max_shard_size`). Adds a `pipeline.py`, through which plain
        `DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)` finds this
        class.

        Raises:
            ValueError: for `safe_serialization=False`, since AIM never reads pickles, an empty path, and a component
                that PEFT wraps, which diffusers would leave out.
            OSError: if the folder can't be written.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization is False; expected True: AIM is saved as safetensors alone.")
        for name in OF_CONFIG:
            component = getattr(self, name)
            component = getattr(component, "_orig_mod", component)  # of torch.compile
            if not isinstance(component, PreTrainedModel | ModelMixin):
                raise ValueError(
                    f"{name} is a {type(component).__name__}, which is no part of a saved pipeline; merge adapters "
                    f"first: pipe.{name} = pipe.{name}.merge_and_unload()."
                )
        kwargs.setdefault("max_shard_size", "5GB")
        if push_to_hub:
            kwargs.setdefault("repo_id", Path(save_directory).resolve().name)
        with written_folder(save_directory) as folder:
            (folder / "pipeline.py").write_text("from aim_hf import AIMPipeline  # noqa: F401\n")
            super().save_pretrained(str(folder), push_to_hub=push_to_hub, **kwargs)

    def to(
        self,
        *args: Any,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        silence_dtype_warnings: bool = False,
    ) -> Self:
        """As `DiffusionPipeline.to`, but the VAE keeps its dtype; only `pipe.vae.to(dtype)` changes it.

        Raises:
            ValueError: for an unknown dtype, and for more than a device and a dtype.
        """
        if len(args) > 2:
            raise ValueError(f"to got {args}; expected a device, a dtype, or a device and a dtype.")
        *first, last = args or (None,)
        if first or isinstance(last, torch.dtype):
            if dtype is not None:
                raise ValueError(f"dtype is given twice, as {last} and {dtype}; give it once.")
            args, dtype = first, last
        if dtype is not None:
            dtype = as_dtype(dtype)
            for component in (self.text_encoder, self.model):
                component.to(dtype)
        return super().to(*args, device=device, silence_dtype_warnings=silence_dtype_warnings)
