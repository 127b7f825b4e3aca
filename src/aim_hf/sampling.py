"""How a chunk is sampled from noise: first the world, then the actions."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from .cache import AIMCache
from .checks import check_number, check_whole
from .modeling_aim import AIMForWorldAction

MOST_STEPS = 1000  # diffusers' training steps
Latents = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
OnStepEnd = Callable[[int, torch.Tensor, Latents], Latents]


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


@torch.no_grad()
def sample_chunk(
    model: AIMForWorldAction,
    cache: AIMCache,
    noise: Latents,
    scheduler: FlowMatchEulerDiscreteScheduler,
    action_scheduler: FlowMatchEulerDiscreteScheduler,
    config: SamplingConfig,
    unguided_cache: AIMCache | None = None,
    true_value_latents: torch.Tensor | None = None,
    committed_actions: torch.Tensor | None = None,
    on_step_end: OnStepEnd | None = None,
) -> Latents:
    """Denoises the chunk that follows what `cache` holds: `sample_world`, then `sample_actions`.

    Args:
        noise: of RGB and value latents, (B, C, F, h, w) each, and of normalized actions, (B, action_horizon,
            action_dim), in float32, whatever the model's dtype.
        true_value_latents: (B, C, F, h, w), to decode the actions from instead of the predicted ones.

    Returns:
        RGB latents, value latents (those that the actions were decoded from) and normalized actions.
    """
    latents = sample_world(model, cache, noise, scheduler, config, unguided_cache, on_step_end)
    if true_value_latents is not None:
        latents = latents[0], true_value_latents.to(latents[0]), latents[2]
    return sample_actions(model, cache, latents, action_scheduler, config, committed_actions, on_step_end)


@torch.no_grad()
def sample_world(
    model: AIMForWorldAction,
    cache: AIMCache,
    noise: Latents,
    scheduler: FlowMatchEulerDiscreteScheduler,
    config: SamplingConfig,
    unguided_cache: AIMCache | None = None,
    on_step_end: OnStepEnd | None = None,
) -> Latents:
    """RGB and value latents on one trajectory, eq. (6).

    Args:
        noise: as in `sample_chunk`; that of the actions is passed through.
        unguided_cache: the same history under the text that guidance leads away from, v = v_unguided + guidance_scale
            * (v - v_unguided).
        on_step_end: called after each step with its index, its timestep and the three latents; what it returns is
            used from there on.
    """
    latents, value_latents, action_latents = noise
    scheduler = with_steps(scheduler, config.num_inference_steps, model.device)
    context = model.world_context(cache)
    unguided_context = None if config.guidance_scale == 1 else model.world_context(unguided_cache)
    for i, t in enumerate(scheduler.timesteps[: config.world_steps]):
        world = torch.stack([latents, value_latents])
        time = _unit_time(scheduler, t, len(latents))
        velocity = torch.stack(model.denoise_world(context, *world.to(model.dtype), time)).float()
        if unguided_context is not None:
            unguided = torch.stack(model.denoise_world(unguided_context, *world.to(model.dtype), time)).float()
            velocity = unguided + config.guidance_scale * (velocity - unguided)
        if i + 1 == config.stop_after:
            latents, value_latents = world - time[0] * velocity
        else:
            latents, value_latents = scheduler.step(velocity, t, world).prev_sample
        if on_step_end is not None:
            latents, value_latents, action_latents = on_step_end(i, t, (latents, value_latents, action_latents))
    return latents, value_latents, action_latents


@torch.no_grad()
def sample_actions(
    model: AIMForWorldAction,
    cache: AIMCache,
    latents: Latents,
    action_scheduler: FlowMatchEulerDiscreteScheduler,
    config: SamplingConfig,
    committed_actions: torch.Tensor | None = None,
    on_step_end: OnStepEnd | None = None,
) -> Latents:
    """The actions from a finished world, eq. (10).

    Args:
        latents: RGB and value latents, and the noise of the actions.
        committed_actions: (B, d, action_dim), normalized: the first d actions are certain already, since they are
            executed while this runs; the others are chosen to follow them.
        on_step_end: as in `sample_world`, whose steps the index goes on from.
    """
    rgb, value, actions = latents
    context = model.action_context(cache, rgb.to(model.dtype), value.to(model.dtype))
    scheduler = with_steps(action_scheduler, config.num_action_inference_steps, model.device)
    certain = 0 if committed_actions is None else committed_actions.shape[1]
    for i, t in enumerate(scheduler.timesteps):
        time = _unit_time(scheduler, t, len(actions))
        if certain:
            # What is certain is given as it is, each action with a time of its own.
            actions = torch.cat([committed_actions.to(actions), actions[:, certain:]], dim=1)
            time = time[:, None].repeat(1, actions.shape[1])
            time[:, :certain] = 0
        velocity = model.denoise_actions(context, actions.to(model.dtype), time)
        stepped = scheduler.step(velocity.float(), t, actions).prev_sample
        actions = torch.cat([actions[:, :certain], stepped[:, certain:]], dim=1) if certain else stepped
        if on_step_end is not None:
            rgb, value, actions = on_step_end(config.world_steps + i, t, (rgb, value, actions))
    return rgb, value, actions


def _unit_time(scheduler, timestep, rows: int) -> torch.Tensor:
    """t in [0, 1] for each row, (B,); diffusers' timesteps run over its training steps."""
    return (timestep / scheduler.config.num_train_timesteps).expand(rows)


def with_steps(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, device: torch.device
) -> FlowMatchEulerDiscreteScheduler:
    """A copy of the scheduler that is set to `steps` steps: a scheduler counts the steps that it has taken, so calls
    that run at the same time need one each.

    Its times are given explicitly: the scheduler's own default shifts its last sigma twice, so that the last of few
    steps is next to none.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device)
    return scheduler
