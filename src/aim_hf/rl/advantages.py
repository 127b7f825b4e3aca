"""Returns and advantages of a group of episodes, as pure functions of tensors."""

import torch

# Rewards of each reward function for each episode: a scalar, or one number per chunk, (chunks,).
Rewards = list[list[torch.Tensor]]


def mean_rewards(rewards: Rewards) -> torch.Tensor:
    """Mean rewards (R, G) of R functions and G episodes; dense rewards are averaged over an episode's chunks."""
    return torch.stack([torch.stack([reward.mean() for reward in given]) for given in rewards])


def group_returns(rewards: Rewards, weights: list[float], return_to_go: bool = False) -> torch.Tensor:
    """Returns (G,): the weighted sum of each episode's mean rewards; with `return_to_go`, dense rewards are summed."""
    if return_to_go:
        rewards = [[reward.sum() for reward in given] for given in rewards]
    return torch.tensor(weights, dtype=torch.float64) @ mean_rewards(rewards)


def group_advantages(
    rewards: Rewards,
    weights: list[float],
    num_chunks: torch.Tensor,
    scale: float,
    return_to_go: bool = False,
    eps: float = 1e-4,
) -> torch.Tensor:
    """Advantages (G, C) of the chunks of G episodes; zero beyond an episode's end.

    A scalar reward contributes its difference from the group's mean to all chunks of an episode. A dense reward
    contributes to each chunk its difference from the mean of the same chunk over the group. The weighted sum is
    divided by `scale` + `eps`.

    Args:
        num_chunks: (G,), number of chunks of each episode; C is the largest.
        return_to_go: replace the dense reward of a chunk by its sum over this and all later chunks.
    """
    inside = torch.arange(int(num_chunks.max())) < num_chunks[:, None]  # (G, C)
    advantages = torch.zeros(inside.shape, dtype=torch.float64)
    for weight, given in zip(weights, rewards, strict=True):
        if given[0].ndim == 0:
            advantages += weight * (torch.stack(given) - torch.stack(given).mean())[:, None]
            continue
        dense = torch.zeros_like(advantages)
        for row, reward in enumerate(given):
            dense[row, : len(reward)] = reward.flip(0).cumsum(0).flip(0) if return_to_go else reward
        advantages += weight * (dense - (dense * inside).sum(dim=0) / inside.sum(dim=0))
    return (advantages * inside / (scale + eps)).float()
