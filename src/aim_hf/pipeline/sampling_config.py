"""How chunks are sampled, as numbers: the command line knows them before it imports torch."""

from dataclasses import dataclass

from ..utils.checks import check_number, check_whole

MOST_STEPS = 1000  # diffusers' training steps


@dataclass(frozen=True)
class SamplingConfig:
    """How chunks are sampled. A pipeline keeps one, `pipe.sampling_config`, and saves it.

    num_inference_steps: denoising steps of RGB and value maps.
    num_action_inference_steps: denoising steps of actions.
    stop_after: end the denoising of RGB and value maps after this many of its steps, at the sample that the last of
        them predicts, x_t - t * v; it costs less, and blurs. None to take them all.
    guidance_scale: of RGB and value maps, 1 for none; above, they follow the instruction more closely. Needs a session
        with a `negative_prompt`, and a model trained with dropped instructions. Actions are never guided.
    action_noise_scale: of the noise that actions start from, 0 to 1. 1 samples what the model has learned; 0 leaves
        nothing to chance but what is imagined, and gives actions near the middle of what it would sample.

    Raises:
        ValueError: for numbers that don't fit.
    """

    num_inference_steps: int = 5
    num_action_inference_steps: int = 10
    stop_after: int | None = None
    guidance_scale: float = 1.0
    action_noise_scale: float = 1.0

    def __post_init__(self):
        for name in ("num_inference_steps", "num_action_inference_steps"):
            if check_whole(name, getattr(self, name)) > MOST_STEPS:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at most {MOST_STEPS}.")
        if self.stop_after is not None and check_whole("stop_after", self.stop_after) > self.num_inference_steps:
            raise ValueError(
                f"stop_after is {self.stop_after}; expected 1 to num_inference_steps={self.num_inference_steps}."
            )
        check_number("guidance_scale", self.guidance_scale, least=0)
        check_number("action_noise_scale", self.action_noise_scale, 0, 1)

    @property
    def world_steps(self) -> int:
        """Denoising steps of RGB and value maps that are really taken."""
        return self.num_inference_steps if self.stop_after is None else self.stop_after
