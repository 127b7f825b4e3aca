"""How the tiny VAE is trained, as numbers: the command line knows them before it imports torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VAETrainingArguments:
    """How to train.

    steps: optimizer steps; the first `picture_share` of them look at single pictures.
    picture_batch_size, clip_batch_size: of a step in each process; half RGB, half value maps.
    learning_rate: of Muon; AdamW's is `adam_learning_rate`. Both warm up, then fall along a cosine to 3 %.
    foreground_weight: how much more a pixel far from the background counts.
    latent_noise: noise on the latents that the decoder learns from, in their standard deviation: what a model imagines
        is never quite what the encoder gives.
    frame_stride: control steps between two frames of a clip.
    report_steps, save_steps: steps between two reports (numbers and picture) and between two checkpoints.
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
