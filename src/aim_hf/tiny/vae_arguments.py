"""Training arguments of the tiny VAE, in a module without torch, so that the command line can parse them quickly."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..utils.checks import check_fields, check_whole, noise_seed, not_negative, share


def check_even(name: str, value: int) -> None:
    """Raises ValueError unless `value` is a whole number of pairs, at least one."""
    if check_whole(name, value, least=2) % 2:
        raise ValueError(f"{name} is {value}; expected an even number: half RGB, half value maps.")


RANGES = {
    check_whole: ("steps", "warmup_steps", "frame_stride", "report_steps", "save_steps"),
    check_even: ("picture_batch_size", "clip_batch_size"),  # half RGB, half value maps
    noise_seed: ("seed",),
    not_negative: ("learning_rate", "adam_learning_rate", "foreground_weight", "latent_noise"),
    share: ("picture_share",),
}
CELL = 16  # pixels of a latent cell's side


def check_canvas(size: Sequence[int]) -> None:
    """Raises ValueError unless the tiny VAE's cells fill a canvas of this (height, width)."""
    height, width = size
    if height % CELL or width % CELL:
        # A T-pose has heights that are divisible by 3, and two cameras in its width.
        whole = [-(-side // unit) * unit for side, unit in ((height, 3 * CELL), (width, 2 * CELL))]
        raise ValueError(
            f"the canvas is {height} x {width} (height x width); expected multiples of {CELL}, the pixels of a cell "
            f"of the tiny VAE. Give train-text-encoder another one, such as --canvas {whole[0]} {whole[1]}."
        )


@dataclass(frozen=True)
class VAETrainingArguments:
    """Training arguments of the tiny VAE.

    steps: optimizer steps.
    picture_share: share of the steps, the first ones, that train on single pictures; the others train on clips.
    picture_batch_size: pictures per step and process; half RGB, half value maps.
    clip_batch_size: clips per step and process; half RGB, half value maps.
    learning_rate: of Muon. It warms up, then decays along a cosine to 3 %.
    adam_learning_rate: of AdamW, on the same schedule.
    warmup_steps: steps in which both learning rates rise to these values.
    foreground_weight: additional loss weight of pixels far from the background.
    latent_noise: noise on the decoder's input latents, in units of their standard deviation, since imagined latents
        differ from encoded ones.
    frame_stride: control steps between two frames of a clip.
    report_steps: steps between reports (metrics and picture).
    save_steps: steps between checkpoints.
    seed: of the order of the episodes, and of the noise.

    Raises:
        ValueError: for a number out of range.
    """

    steps: int = 6_000
    picture_share: float = 0.6
    picture_batch_size: int = 8
    clip_batch_size: int = 4
    learning_rate: float = 0.02
    adam_learning_rate: float = 3e-3
    warmup_steps: int = 50
    foreground_weight: float = 4.0
    latent_noise: float = 0.05
    frame_stride: int = 2
    report_steps: int = 250
    save_steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, RANGES)
