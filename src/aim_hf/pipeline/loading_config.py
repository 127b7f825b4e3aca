"""How a pipeline is loaded and placed, in a module without torch, so that the command line can parse it quickly."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

QUANTIZATIONS = ("int8", "nf4")
OFFLOADS = ("model", "sequential")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
PLACEMENT = ("text_encoder_device", "offload")


@dataclass(frozen=True)
class LoadingConfig:
    """How a pipeline is loaded and placed, see `AIMPipeline.load`.

    dtype: of the model and the text encoder, by its name, such as "bfloat16"; as stored if not given.
    attn_implementation: of the model's attention, by its name in transformers, such as "flash_attention_2".
    quantization: of the matrices of the video experts and the text encoder. "int8" stores them in 8 bits, by torchao,
        "nf4" in 4 bits, by bitsandbytes; both compute in `dtype`. Action experts and action head stay as they are.
    text_encoder_device: where the text encoder stays, such as "cpu"; it runs once an episode. The others' device if
        not given.
    offload: "model" keeps the text encoder on the CPU and moves it to the device to encode a prompt; "sequential"
        moves it layer by layer. None keeps it on its device.
    compile_blocks: mode of `torch.compile` for the layers, which rounds differently; "reduce-overhead" also captures
        them as CUDA graphs. Not compiled if not given. The first calls take long, and a CPU needs a C++ compiler.

    Raises:
        ValueError: for an unknown quantization, offload or mode, or a text encoder that is placed twice.
    """

    dtype: str | None = None
    attn_implementation: str | None = None
    quantization: str | None = field(default=None, metadata={"choices": QUANTIZATIONS})
    text_encoder_device: str | None = None
    offload: str | None = field(default=None, metadata={"choices": OFFLOADS})
    compile_blocks: str | None = field(
        default=None, metadata={"choices": COMPILE_MODES, "nargs": "?", "const": "default"}
    )

    def __post_init__(self):
        known_values = {each.name: each.metadata["choices"] for each in fields(self) if each.metadata}
        for name, known in known_values.items():
            if getattr(self, name) not in (None, *known):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}, or None.")
        if self.offload and self.text_encoder_device:
            raise ValueError(
                f"offload is {self.offload!r} and text_encoder_device {self.text_encoder_device!r}; give one of them: "
                "both place the text encoder."
            )

    def settings(self) -> dict[str, Any]:
        """The fields that change the results and aren't at their defaults, for the settings of a policy."""
        return {name: value for name, value in asdict(self).items() if value and name not in PLACEMENT}
