"""Sampling parameters of a chunk, in a module without torch, so that the command line can parse them quickly."""

from dataclasses import dataclass

from ..utils.checks import check_number, check_whole

MOST_STEPS = 1000  # number of diffusers' training steps


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling parameters of a chunk. A pipeline has one as `pipe.sampling_config`, and saves it.

    num_inference_steps: denoising steps of RGB and value maps.
    num_action_inference_steps: denoising steps of actions.
    stop_after: number of steps after which the denoising of RGB and value maps ends, with the predicted clean sample
        x_t - t * v. It is cheaper and blurs. None for all steps.
    guidance_scale: classifier-free guidance of RGB and value maps; 1 for none, more to follow the instruction more
        closely. Needs a session with a `negative_prompt`, and a model trained with dropped instructions. Actions are
        never guided.
    action_noise_scale: factor of the initial noise of actions, 0 to 1. 1 samples the learned distribution; 0 makes
        actions deterministic given the imagined future, near the middle of that distribution.

    Raises:
        ValueError: for numbers out of range.
    """

    num_inference_steps: int = 5
    num_action_inference_steps: int = 10
    stop_after: int | None = None
    guidance_scale: float = 1.0
    action_noise_scale: float = 1.0

    def __post_init__(self):
        names = ("num_inference_steps", "num_action_inference_steps")
        checked = {name: check_whole(name, getattr(self, name)) for name in names}
        for name, steps in checked.items():
            if steps > MOST_STEPS:
                raise ValueError(f"{name} is {steps}; expected at most {MOST_STEPS}.")
        if self.stop_after is not None:
            checked["stop_after"] = check_whole("stop_after", self.stop_after)
            if self.stop_after > self.num_inference_steps:
                raise ValueError(
                    f"stop_after is {self.stop_after}; expected 1 to num_inference_steps={self.num_inference_steps}."
                )
        checked["guidance_scale"] = check_number("guidance_scale", self.guidance_scale, least=0)
        checked["action_noise_scale"] = check_number("action_noise_scale", self.action_noise_scale, 0, 1)
        for name, number in checked.items():  # NumPy's numbers can't be saved as JSON
            object.__setattr__(self, name, number)

    @property
    def negative_prompt(self) -> str | None:
        """The negative prompt that a session needs; None without guidance."""
        return None if self.guidance_scale == 1 else ""

    @property
    def world_steps(self) -> int:
        """Number of denoising steps of RGB and value maps, with `stop_after`."""
        return self.num_inference_steps if self.stop_after is None else self.stop_after
