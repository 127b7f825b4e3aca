"""Objective of stage 2, eq. (13), as pure functions of tensors.

A token is one mode of a chunk's actions at one random denoising step: (G, C, S, M) for G episodes, C chunks, S steps
and M modes.
"""

import torch


def policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    divergence: torch.Tensor,
    epsilon: float,
    epsilon_high: float,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each token, - min(ratio * A, clip(ratio) * A) + beta * KL, and its likelihood ratio (new / old): (G, C,
    S, M) each.

    Args:
        log_probs, old_log_probs, divergence: (G, C, S, M).
        advantages: (G, C).
    """
    advantages, ratio = advantages[:, :, None, None], (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    return -torch.minimum(ratio * advantages, clipped * advantages) + beta * divergence, ratio


def token_weights(
    num_chunks: torch.Tensor, chunks: int, steps: int, share: torch.Tensor, loss_type: str
) -> torch.Tensor:
    """Loss weight of each token, (G, C, S, M): 0 beyond an episode's end, and for actions that aren't executed.

    Args:
        num_chunks: (G,), of each episode.
        chunks, steps: C and S.
        share: (M,), executed share of each mode.
        loss_type: "grpo" weights all episodes equally, "dapo" all tokens.
    """
    inside = (torch.arange(chunks) < num_chunks[:, None]).float()
    if loss_type == "grpo":
        inside = inside / num_chunks[:, None] / (steps * share.sum())
    return inside[:, :, None, None] * share.expand(steps, -1)
