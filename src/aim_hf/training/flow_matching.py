"""The objective of stage 1: flow matching on RGB, value maps and actions, eq. (9).

Time runs from t = 1 (noise) to t = 0 (data): x_t = (1 - t) * x_0 + t * eps, and the model predicts eps - x_0.
"""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from ..model.configuration_aim import AIMConfig
from ..model.layers import at_least_float32


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
    """The time of a flow-matching schedule: t = s*u / (1 + (s-1)*u)."""
    return shift * u / (1 + (shift - 1) * u)


class FlowMatchingLoss:
    """Eq. (9) over K chunks, each denoised from its real history (teacher forcing).

    A chunk's prediction has P = (F + A) * n actions, with A = config.action_lookahead_frames. Times, noise, mixtures
    and losses are in at least float32, whatever the model computes in: bfloat16 has 128 times between 1/2 and 1.

    Args:
        config: of the model.
        num_draws: D, noise draws per chunk of RGB and value. They share the clean tokens.
        num_action_draws: E, noise draws per chunk of actions. They cost the action expert alone.
    """

    def __init__(self, config: AIMConfig, num_draws: int = 1, num_action_draws: int = 1):
        self.config, self.num_draws, self.num_action_draws = config, num_draws, num_action_draws

    def __call__(
        self,
        model: torch.nn.Module,
        latents: torch.Tensor,
        value_latents: torch.Tensor,
        actions: torch.Tensor,
        prompt_embeds: torch.Tensor,
        executed_actions: torch.Tensor | None = None,
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
            model: an [`AIMForWorldAction`], maybe wrapped.
            latents: (B, C, 1 + K*F, h, w), a current latent frame and the K chunks after it.
            value_latents: (B, C, K*F, h, w), value maps of the K chunks.
            actions: (B, (K*F + A)*n, action_dim), normalized; what the action head shall predict.
            prompt_embeds: (B, S, text_dim), zero beyond each prompt.
            executed_actions: (B, K*F*n, action_dim), the history the robot really executed; from `actions` if not
                given.
            action_mask: (B, (K*F + A)*n, action_dim) or without the last axis, 0 where an action must not count.
            rgb_weights, value_weights: (B, K*F, h, w), weights of the two losses per latent cell; 0 where a view or a
                map is missing.
            history_timestep: (B,), noise level of the real observations that the chunks start from, which the model
                is told: one that has seen noisy history trusts its imagination less. 0 if not given.
            committed_actions: (B, E, K), how many of the first actions of a prediction are already certain: they are
                given clean, at t = 0, and don't count.
            timesteps: t of each draw and chunk, (B, D, K) and (B, E, K); drawn if not given.
            noise: (B, D, C, K*F, h, w) for RGB and for value, (B, E, K*P, action_dim); drawn if not given.
            generator: for what is drawn.

        Raises:
            ValueError: for shapes that don't fit together.
        """
        config, F, P = self.config, self.config.chunk_latent_frames, self.config.action_horizon
        latents, value_latents, actions = map(at_least_float32, (latents, value_latents, actions))
        self._check(latents, value_latents, actions)
        (B, C, T, h, w), D, E = value_latents.shape, self.num_draws, self.num_action_draws
        K, on = T // F, {"device": latents.device, "dtype": latents.dtype, "generator": generator}

        # 1. Time and noise.
        if timesteps is None:
            u_video, u_action = torch.rand(B, D, K, **on), torch.rand(B, E, K, **on)
            timesteps = shifted(u_video, config.video_shift), shifted(u_action, config.action_shift)
        if noise is None:
            shapes = (B, D, C, T, h, w), (B, D, C, T, h, w), (B, E, K * P, config.action_dim)
            noise = tuple(torch.randn(*shape, **on) for shape in shapes)
        (t, t_action), (eps_x, eps_m, eps_a) = (map(at_least_float32, given) for given in (timesteps, noise))
        t = t.repeat_interleave(F, dim=2)  # of each latent frame, (B, D, T)
        t_action = t_action.repeat_interleave(P, dim=2)  # of each action, (B, E, K*P)
        certain = torch.zeros_like(t_action, dtype=torch.bool)
        if committed_actions is not None:
            certain = (torch.arange(P, device=latents.device) < committed_actions[..., None]).flatten(2)
        t_action = t_action.masked_fill(certain, 0)

        # 2. Data, and what lies between it and noise. Clean tensors get the axis of draws.
        x, m, a = (clean.unsqueeze(1) for clean in (latents[:, :, 1:], value_latents, self._predictions(actions)))
        at, at_action = t[:, :, None, :, None, None], t_action[..., None]
        x_t, m_t, a_t = (1 - at) * x + at * eps_x, (1 - at) * m + at * eps_m, (1 - at_action) * a + at_action * eps_a
        if history_timestep is not None:
            level = at_least_float32(history_timestep)[:, None, None, None, None]
            latents = (1 - level) * latents + level * torch.randn(latents.shape, **on)
        executed = actions[:, : K * config.actions_per_chunk] if executed_actions is None else executed_actions

        # 3. Velocities. Without committed actions, those of a latent frame share one time.
        if committed_actions is None:
            t_action = t_action[..., :: config.actions_per_latent_frame]
        clean = (latents, value_latents, executed, prompt_embeds)
        velocity = model(*clean, x_t, m_t, a_t, t, t_action, history_timestep)

        # 4. Errors.
        counted = ~certain[..., None]
        if action_mask is not None:
            action_mask = action_mask[..., None] if action_mask.dim() == 2 else action_mask
            counted = counted * self._predictions(action_mask.expand(actions.shape)).unsqueeze(1)
        v_x, v_m, v_a = map(at_least_float32, velocity.to_tuple())
        rgb_loss = weighted_mean((v_x - (eps_x - x)).square().mean(dim=2), rgb_weights)
        value_loss = weighted_mean((v_m - (eps_m - m)).square().mean(dim=2), value_weights)
        action_loss = weighted_mean((v_a - (eps_a - a)).square(), counted)
        loss = rgb_loss + config.value_loss_weight * value_loss + config.action_loss_weight * action_loss
        return FlowMatchingOutput(loss, rgb_loss, value_loss, action_loss, v_x, v_m, v_a)

    def _predictions(self, of_window: torch.Tensor) -> torch.Tensor:
        """(B, (K*F + A)*n, ...) -> (B, K*P, ...), each chunk's actions one after the other."""
        horizon, step = self.config.action_horizon, self.config.actions_per_chunk
        return of_window.unfold(1, horizon, step).movedim(-1, 2).flatten(1, 2)

    def _check(self, latents: torch.Tensor, value_latents: torch.Tensor, actions: torch.Tensor) -> None:
        config, (B, C, N, *size) = self.config, latents.shape
        F, T = config.chunk_latent_frames, N - 1
        if T < 1 or T % F:
            raise ValueError(f"latents hold {N} frames; expected 1 + a multiple of chunk_latent_frames={F}.")
        if value_latents.shape != (B, C, T, *size):
            raise ValueError(f"value_latents are {tuple(value_latents.shape)}; expected {(B, C, T, *size)}.")
        expected = (B, (T + config.action_lookahead_frames) * config.actions_per_latent_frame, config.action_dim)
        if actions.shape != expected:
            raise ValueError(f"actions are {tuple(actions.shape)}; expected {expected}.")


def weighted_mean(error: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """error: (B, D, ...). weights: (B, ...) for all draws, (B, D, ...), or None for one each. 0 where all weights
    are 0."""
    if weights is None:
        return error.mean()
    weights = weights.unsqueeze(1) if weights.dim() < error.dim() else weights
    weights = weights.expand(error.shape).to(error.dtype)
    return (error * weights).sum() / weights.sum().clamp(min=1e-8)
