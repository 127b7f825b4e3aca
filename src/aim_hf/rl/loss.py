"""The objective of stage 2, eq. (13), as pure functions of arrays.

Tokens are random steps of a chunk: (G, C, S, M) for G episodes, C chunks, S steps and M modes of the actions.
"""

from typing import NamedTuple

import torch


class PolicyLoss(NamedTuple):
    """Each (G, C, S, M): of each token, the loss, and the ratio of its likelihoods, new over old."""

    loss: torch.Tensor
    ratio: torch.Tensor


def policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    divergence: torch.Tensor,
    epsilon: float,
    epsilon_high: float,
    beta: float,
    sequence_share: torch.Tensor | None = None,
) -> PolicyLoss:
    """- min(ratio * A, clip(ratio) * A) + beta * KL of each token.

    Args:
        log_probs, old_log_probs, divergence: (G, C, S, M). advantages: (G, C).
        sequence_share: (M,), how much of each mode counts: one ratio for each chunk, of the mean over its tokens. None
            for a ratio of each token.
    """
    advantages, log_ratio = advantages[:, :, None, None], log_probs - old_log_probs
    if sequence_share is not None:
        share = sequence_share.to(log_ratio)
        of_chunk = (log_ratio * share).sum(dim=(2, 3), keepdim=True) / (log_ratio.shape[2] * share.sum())
        log_ratio = of_chunk.expand_as(log_probs)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    return PolicyLoss(-torch.minimum(ratio * advantages, clipped * advantages) + beta * divergence, ratio)


def token_weights(
    num_chunks: torch.Tensor, chunks: int, steps: int, share: torch.Tensor, loss_type: str
) -> torch.Tensor:
    """What each token counts, (G, C, S, M): nothing beyond an episode's end, nor for actions that aren't executed.

    Args:
        num_chunks: (G,). share: (M,), how much of each mode is executed.
        loss_type: "grpo" gives each episode the same weight, "dapo" each token.
    """
    inside = (torch.arange(chunks) < num_chunks[:, None]).float()
    if loss_type == "grpo":
        inside = inside / num_chunks[:, None] / (steps * share.sum())
    return inside[:, :, None, None] * share.expand(steps, -1)
