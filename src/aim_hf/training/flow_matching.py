"""Objective of stage 1: flow matching on RGB, value maps and actions, eq. (9).

Time runs from t = 1 (noise) to t = 0 (data): x_t = (1 - t) * x_0 + t * eps, and the model predicts eps - x_0.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from ..model.configuration_aim import AIMConfig
from ..model.layers import at_least_float32

LOSS_TERMS = ("rgb_loss", "value_loss", "action_loss")  # fields of `FlowMatchingOutput`


@dataclass
class FlowMatchingOutput(ModelOutput):
    """
    loss: eq. (9), a scalar. rgb_loss, value_loss, action_loss: its three terms, unweighted.
    rgb_velocity, value_velocity: (B, D, C, K*F, h, w); action_velocity: (B, E, K*P, action_dim).
    """

    loss: torch.Tensor | None = None
    rgb_loss: torch.Tensor | None = None
    value_loss: torch.Tensor | None = None
    action_loss: torch.Tensor | None = None
    rgb_velocity: torch.Tensor | None = None
    value_velocity: torch.Tensor | None = None
    action_velocity: torch.Tensor | None = None


def shifted(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Time of a shifted flow-matching schedule: t = s*u / (1 + (s-1)*u), for uniform u."""
    return shift * u / (1 + (shift - 1) * u)


def of_steps(u: torch.Tensor, steps: int | None) -> torch.Tensor:
    """Uniform u in [0, 1) as one of the times 1/steps, 2/steps .. 1 at which so many denoising steps start."""
    return u if steps is None else ((u * steps).floor() + 1) / steps


class FlowMatchingLoss:
    """Eq. (9) over K chunks, each denoised from its real history (teacher forcing).

    A chunk's prediction has P = (F + A) * n actions, with A = config.action_lookahead_frames. Times, noise, noisy
    samples and losses are in at least float32, for every dtype of the model: bfloat16 has only 128 times between 1/2
    and 1.

    Args:
        config: of the model.
        num_draws: D, noise samples per chunk of RGB and value latents. They share the clean tokens.
        num_action_draws: E, noise samples per chunk of actions. Only the action expert computes on them.
        num_inference_steps, num_action_inference_steps: numbers of denoising steps, of RGB and value latents and of
            actions, at whose times the model is trained; None for all times.
    """

    def __init__(
        self,
        config: AIMConfig,
        num_draws: int = 1,
        num_action_draws: int = 1,
        num_inference_steps: int | None = None,
        num_action_inference_steps: int | None = None,
    ):
        self.config, self.num_draws, self.num_action_draws = config, num_draws, num_action_draws
        self.num_inference_steps = num_inference_steps
        self.num_action_inference_steps = num_action_inference_steps

    def __call__(
        self,
        model: torch.nn.Module,
        latents: torch.Tensor,
        value_latents: torch.Tensor,
        actions: torch.Tensor,
        prompt_embeds: torch.Tensor,
        executed_actions: torch.Tensor | None = None,
        shown_value_latents: torch.Tensor | None = None,
        action_mask: torch.Tensor | None = None,
        rgb_weights: torch.Tensor | None = None,
        value_weights: torch.Tensor | None = None,
        history_timestep: torch.Tensor | None = None,
        committed_actions: torch.Tensor | None = None,
        timesteps: tuple[torch.Tensor, torch.Tensor] | None = None,
        noise: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> FlowMatchingOutput:
        """
        Args:
            model: an [`AIMForWorldAction`], possibly wrapped.
            latents: (B, C, 1 + K*F, h, w), a current latent frame and the K chunks after it.
            value_latents: (B, C, K*F, h, w), value maps of the K chunks.
            actions: (B, (K*F + A)*n, action_dim), normalized; targets of the action head. Or (B, K*P, action_dim),
                separate targets of each prediction, if overlapping predictions give an action in different frames of
                reference; `executed_actions` are needed then.
            prompt_embeds: (B, S, text_dim), zero beyond each prompt.
            executed_actions: (B, K*F*n, action_dim), actions that the robot really executed; from `actions` if not
                given.
            shown_value_latents: (B, C, K*F, h, w), value maps that the actions see, such as imagined ones;
                `value_latents` if not given.
            action_mask: (B, K*P, action_dim) or without the last axis, 0 for actions of the predictions without loss.
            rgb_weights, value_weights: (B, K*F, h, w), loss weight of each latent cell; 0 where a view or a map is
                missing.
            history_timestep: (B,), noise level of the real observations before each chunk, which the model is given
                too. Training with noisy history makes a model rely less on its imagination. 0 if not given.
            committed_actions: (B, E, K), number of committed actions at the start of each prediction. They are given
                clean, at t = 0, and have no loss.
            timesteps: t of each noise sample and chunk, (B, D, K) and (B, E, K); random if not given.
            noise: (B, D, C, K*F, h, w) for RGB and for value, (B, E, K*P, action_dim); random if not given.
            generator: of all random numbers.

        Raises:
            ValueError: for shapes that don't fit together.
        """
        config, F, P = self.config, self.config.chunk_latent_frames, self.config.action_horizon
        latents, value_latents, actions = map(at_least_float32, (latents, value_latents, actions))
        self._check(latents, value_latents, actions)
        random = {"device": latents.device, "dtype": latents.dtype, "generator": generator}

        # Schedules: t of each latent frame, (B, D, K*F), and of each action, (B, E, K*P).
        t, t_action = map(at_least_float32, timesteps or self._sample_timesteps(value_latents, random))
        t, t_action = t.repeat_interleave(F, dim=2), t_action.repeat_interleave(P, dim=2)

        # Committed prefixes are clean.
        committed = torch.zeros_like(t_action, dtype=torch.bool)
        if committed_actions is not None:
            committed = (torch.arange(P, device=latents.device) < committed_actions[..., None]).flatten(2)
        t_action = t_action.masked_fill(committed, 0)

        # Noisy samples x_t = (1 - t) * x + t * eps. Clean tensors get an axis of noise samples.
        eps_x, eps_m, eps_a = map(at_least_float32, noise or self._sample_noise(value_latents, random))
        a = actions if actions.shape[1] == eps_a.shape[2] else self.predictions(actions)
        x, m, a = latents[:, None, :, 1:], value_latents[:, None], a[:, None]
        t_x, t_a = t[:, :, None, :, None, None], t_action[..., None]
        x_t, m_t, a_t = (1 - t_x) * x + t_x * eps_x, (1 - t_x) * m + t_x * eps_m, (1 - t_a) * a + t_a * eps_a
        if history_timestep is not None:
            level = at_least_float32(history_timestep)[:, None, None, None, None]
            latents = (1 - level) * latents + level * torch.randn(latents.shape, **random)

        # Predicted velocities. Without committed actions, the actions of a latent frame share one time.
        executed_actions = self._executed(executed_actions, actions, value_latents)
        if committed_actions is None:
            t_action = t_action[..., :: config.actions_per_latent_frame]
        shown = value_latents if shown_value_latents is None else shown_value_latents
        clean = (latents, shown, executed_actions, prompt_embeds)
        velocity = model(*clean, x_t, m_t, a_t, t, t_action, history_timestep)
        v_x, v_m, v_a = map(at_least_float32, velocity.to_tuple())

        # Eq. (9): weighted squared errors of the velocities, whose targets are eps - x.
        action_weights = self._action_weights(committed, action_mask)
        rgb_loss = weighted_mean((v_x - (eps_x - x)).square().mean(dim=2), rgb_weights)
        value_loss = weighted_mean((v_m - (eps_m - m)).square().mean(dim=2), value_weights)
        action_loss = weighted_mean((v_a - (eps_a - a)).square(), action_weights)
        loss = rgb_loss + config.value_loss_weight * value_loss + config.action_loss_weight * action_loss
        return FlowMatchingOutput(loss, rgb_loss, value_loss, action_loss, v_x, v_m, v_a)

    @torch.no_grad()
    def imagined_values(
        self,
        model: torch.nn.Module,
        latents: torch.Tensor,
        value_latents: torch.Tensor,
        actions: torch.Tensor,
        prompt_embeds: torch.Tensor,
        executed_actions: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Value maps (B, C, K*F, h, w) that one denoising step from noise imagines from each chunk's real history. The
        arguments are those of a call."""
        B, K, P = len(latents), value_latents.shape[2] // self.config.chunk_latent_frames, self.config.action_horizon
        executed_actions = self._executed(executed_actions, actions, value_latents)
        x, m = torch.randn(2, B, 1, *value_latents.shape[1:], device=latents.device, dtype=latents.dtype)
        a = torch.zeros(B, 1, K * P, self.config.action_dim, device=latents.device, dtype=latents.dtype)
        t = torch.ones(B, 1, value_latents.shape[2], device=latents.device, dtype=latents.dtype)
        t_action = torch.ones(B, 1, K * P // self.config.actions_per_latent_frame).to(t)
        clean = (latents, value_latents, executed_actions, prompt_embeds)
        _, v_m, _ = model(*clean, x, m, a, t, t_action, None).to_tuple()
        return (m - at_least_float32(v_m))[:, 0]

    def _executed(
        self, executed_actions: torch.Tensor | None, actions: torch.Tensor, value_latents: torch.Tensor
    ) -> torch.Tensor:
        """Executed actions of all chunks; those of the targets if not given."""
        if executed_actions is not None:
            return executed_actions
        return actions[:, : value_latents.shape[2] * self.config.actions_per_latent_frame]

    def _sample_timesteps(
        self, value_latents: torch.Tensor, random: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Random t of each noise sample and chunk, (B, D, K) and (B, E, K)."""
        B, K = len(value_latents), value_latents.shape[2] // self.config.chunk_latent_frames
        u_video = torch.rand(B, self.num_draws, K, **random)
        u_action = torch.rand(B, self.num_action_draws, K, **random)
        u_video = of_steps(u_video, self.num_inference_steps)
        u_action = of_steps(u_action, self.num_action_inference_steps)
        return shifted(u_video, self.config.video_shift), shifted(u_action, self.config.action_shift)

    def _sample_noise(self, value_latents: torch.Tensor, random: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Noise for RGB and for value, (B, D, C, K*F, h, w) each, and for actions, (B, E, K*P, action_dim)."""
        config, (B, *shape) = self.config, value_latents.shape
        count = value_latents.shape[2] // config.chunk_latent_frames * config.action_horizon
        video, action = (B, self.num_draws, *shape), (B, self.num_action_draws, count, config.action_dim)
        return tuple(torch.randn(*size, **random) for size in (video, video, action))

    def _action_weights(self, committed: torch.Tensor, action_mask: torch.Tensor | None) -> torch.Tensor:
        """Loss weights of actions, (B, E, K*P, 1 or action_dim): 0 for committed and masked actions, else 1."""
        weights = ~committed[..., None]
        if action_mask is not None:
            action_mask = action_mask[..., None] if action_mask.dim() == 2 else action_mask
            weights = weights * action_mask.unsqueeze(1)
        return weights

    def predictions(self, window: torch.Tensor) -> torch.Tensor:
        """(B, (K*F + A)*n, ...) -> (B, K*P, ...), the actions of each chunk's prediction. Predictions overlap if there
        is a lookahead."""
        horizon, step = self.config.action_horizon, self.config.actions_per_chunk
        return window.unfold(1, horizon, step).movedim(-1, 2).flatten(1, 2)

    def _check(self, latents: torch.Tensor, value_latents: torch.Tensor, actions: torch.Tensor) -> None:
        config, (B, C, N, *size) = self.config, latents.shape
        F, T = config.chunk_latent_frames, N - 1
        if T < 1 or T % F:
            raise ValueError(f"latents hold {N} frames; expected 1 + a multiple of chunk_latent_frames={F}.")
        if value_latents.shape != (B, C, T, *size):
            raise ValueError(f"value_latents are {tuple(value_latents.shape)}; expected {(B, C, T, *size)}.")
        expected = (B, (T + config.action_lookahead_frames) * config.actions_per_latent_frame, config.action_dim)
        if actions.shape not in (expected, (B, T // F * config.action_horizon, config.action_dim)):
            raise ValueError(f"actions are {tuple(actions.shape)}; expected {expected}.")


def weigh_values(inputs: dict[str, torch.Tensor], foreground_weight: float) -> dict[str, torch.Tensor]:
    """Turns a batch of windows (`LatentWindows`) into arguments of the loss: `value_cells` become `value_weights`.

    Args:
        inputs: may have a `value_mask` (B, K*F, h, w), 0 in cells without a known value map, which isn't returned.
        foreground_weight: additional weight of bright cells. Value maps are mostly black; without it, the peak is
            learned last.
    """
    inputs = dict(inputs)
    inputs["value_weights"] = 1 + foreground_weight * inputs.pop("value_cells")
    if "value_mask" in inputs:
        # Cells without a known value map have no loss, and noise as input, so that other tokens and the action head
        # learn to ignore the values predicted there.
        mask, latents = inputs.pop("value_mask"), inputs["value_latents"]
        inputs["value_weights"] = inputs["value_weights"] * mask
        inputs["value_latents"] = torch.where(mask[:, None] > 0, latents, torch.randn_like(latents))
    return inputs


def weighted_mean(error: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Weighted mean of `error`, (B, D, ...); 0 if all weights are 0. weights: (B, ...) for all noise samples, (B, D,
    ...), or None for equal weights."""
    if weights is None:
        return error.mean()
    weights = weights.unsqueeze(1) if weights.dim() < error.dim() else weights
    weights = weights.expand(error.shape).to(error.dtype)
    return (error * weights).sum() / weights.sum().clamp(min=1e-8)
