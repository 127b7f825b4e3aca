"""The configuration of AIM.

Every size of the model, and every interpretation of the paper that a user may want to change, is a field here. Fields
of the video stream have the names of diffusers' `WanTransformer3DModel`.
"""

import os
from functools import wraps
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from ..utils.checks import check_choice, check_number, check_positive, check_stored, check_whole
from .visibility import Visibility

# Keys that `PreTrainedConfig` accepts in addition to the declared fields.
_BASE_KEYS = {
    "model_type",
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
    "torch_dtype",
    "attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation_internal",
    "output_attentions",
    "num_labels",
    "auto_map",
    "is_encoder_decoder",
    "use_cache",  # the Trainer of transformers sets it on the configuration of every model
}
# Fields of earlier versions; they are False in every published checkpoint.
_REMOVED = ("value_text_cross_attention", "joint_denoising")


def _with_value_errors(config: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """The class, which now raises a one-line ValueError for a refused field, and for a field that is given twice, also
    by its old name. `@strict` wraps the first in a two-line error, which is no ValueError."""
    init = config.__init__

    @wraps(init)
    def initialize(self: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        if kwargs.keys() >= {"visibility", "action_reads_value"}:
            raise ValueError(
                f"visibility is {kwargs['visibility']!r} and action_reads_value {kwargs['action_reads_value']!r}; "
                "expected one of them. Leave out the second, which is 0.1.0's name of two variants."
            )
        try:
            init(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__)) from error

    config.__init__ = initialize
    return config


@_with_value_errors
@strict
class AIMConfig(PreTrainedConfig):
    r"""
    Configuration of [`AIMForWorldAction`].

    Args:
        patch_size: (time, height, width) of a video token in latent cells; the time patch must be 1.
        num_attention_heads, attention_head_dim: of the shared attention; their product is the video stream's width.
        in_channels, out_channels: channels of the VAE's latents.
        text_dim: width of the text encoder's features.
        freq_dim: width of the sinusoidal time embedding.
        ffn_dim, num_layers, cross_attn_norm, eps: as in `WanTransformer3DModel`.
        action_dim: numbers in one dual-arm action (16 for `ee`, 14 for `qpos`).
        action_hidden_size, action_ffn_dim: widths of the action expert; it also has `num_layers` layers.
        chunk_latent_frames: F, latent frames in one chunk.
        actions_per_latent_frame: n, actions in one latent frame; a chunk holds F * n actions.
        action_lookahead_frames: A, latent frames beyond the chunk for which actions are predicted too. The robot
            executes these actions while the next chunk is computed (real-time chunking). The paper uses 0.
        history_chunks: number of past chunks that a query may attend to, including the current observation's chunk;
            `None` for all of them.
        separate_history_head: whether a frozen copy of the action head encodes executed actions while stage 2 trains
            the action head. See [`AIMForWorldAction.separate_history_head`].
        visibility: how the imagined future reaches the actions, a [`Visibility`] by its name: "map_only" through the
            value map alone, "aim" as in the paper, or one of the other variants.
        value_loss_weight, action_loss_weight: lambda_m and lambda_a of eq. (9).
        video_shift, action_shift: shifts of the two flow-matching schedules, t = s*u / (1 + (s-1)*u).
        initializer_range: standard deviation of new weights.

    Raises:
        ValueError: for an unknown field, and a value of another type or out of range.
    """

    model_type = "aim"

    # video stream
    patch_size: list[int] | tuple[int, ...] = (1, 2, 2)
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    in_channels: int = 48
    out_channels: int = 48
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 14336
    num_layers: int = 30
    cross_attn_norm: bool = True
    eps: float = 1e-6
    # action head
    action_dim: int = 16
    action_hidden_size: int = 1024
    action_ffn_dim: int = 4096
    # time
    chunk_latent_frames: int = 2
    actions_per_latent_frame: int = 16
    action_lookahead_frames: int = 0
    history_chunks: int | None = None
    separate_history_head: bool = False
    # visible sets, eq. (10)
    visibility: str = "map_only"
    # objective, eq. (9)
    value_loss_weight: float | int = 1.0
    action_loss_weight: float | int = 1.0
    video_shift: float | int = 5.0
    action_shift: float | int = 1.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        for name in _REMOVED:
            if kwargs.pop(name, False):
                raise ValueError(f"{name} is True; this version of aim-hf has no such model, 0.1.0 had.")
        if (reads_value := kwargs.pop("action_reads_value", None)) is not None:  # 0.1.0 had these two variants
            self.visibility = "aim" if reads_value else "observations"
        unknown = sorted(set(kwargs) - _BASE_KEYS)
        if unknown:
            raise ValueError(
                f"AIMConfig has no field {', '.join(map(repr, unknown))}; see the fields in its docstring."
            )
        self.patch_size = tuple(self.patch_size)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Checks sizes and ranges; `@strict` calls it. Raises ValueError for values that no AIM model can have."""
        at_least_one = (
            *("num_attention_heads", "in_channels", "out_channels", "text_dim", "ffn_dim", "num_layers", "action_dim"),
            *("action_hidden_size", "action_ffn_dim", "chunk_latent_frames", "actions_per_latent_frame"),
        )
        for name in at_least_one:
            check_whole(name, getattr(self, name))
        check_choice("visibility", self.visibility, Visibility)
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ValueError(f"patch_size is {self.patch_size}; it must be (1, height, width).")
        if self.attention_head_dim % 2 or self.attention_head_dim < 6:
            raise ValueError(
                f"attention_head_dim is {self.attention_head_dim}; rotary positions over time, height and width need "
                "an even number of at least 6."
            )
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim is {self.freq_dim}; it must be even.")
        check_whole("action_lookahead_frames", self.action_lookahead_frames, least=0)
        if self.history_chunks is not None and self.history_chunks < 1:
            raise ValueError(
                f"history_chunks is {self.history_chunks}; it must be at least 1, or None for all history."
            )
        for name in ("video_shift", "action_shift"):
            check_positive(name, getattr(self, name))
        for name in ("value_loss_weight", "action_loss_weight"):
            check_number(name, getattr(self, name), 0)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `PreTrainedConfig.get_config_dict`, but raises OSError where there is no config.json, for which the base
        class takes all defaults."""
        config, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_stored(config, pretrained_model_name_or_path, "config.json", part="model")
        return config, unused

    @property
    def hidden_size(self) -> int:
        """Width of the video stream and of the shared attention, eq. (7)."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def actions_per_chunk(self) -> int:
        return self.chunk_latent_frames * self.actions_per_latent_frame

    @property
    def action_horizon(self) -> int:
        """P, actions in one prediction: those of the chunk and of the lookahead."""
        return (self.chunk_latent_frames + self.action_lookahead_frames) * self.actions_per_latent_frame
