"""Returns and advantages of a group of episodes, as pure functions of arrays."""

import torch

# Of each reward function, each episode's reward: a scalar, or one for each of its chunks, (chunks,).
Rewards = list[list[torch.Tensor]]


def mean_rewards(rewards: Rewards) -> torch.Tensor:
    """(R, G) of R functions and G episodes; dense rewards are averaged over an episode's chunks."""
    return torch.stack([torch.stack([reward.mean() for reward in given]) for given in rewards])


def group_returns(rewards: Rewards, weights: list[float]) -> torch.Tensor:
    """(G,), the weighted sum of each episode's rewards."""
    return torch.tensor(weights, dtype=torch.float64) @ mean_rewards(rewards)


def group_advantages(
    rewards: Rewards, weights: list[float], num_chunks: torch.Tensor, scale: float, eps: float = 1e-4
) -> torch.Tensor:
    """(G, C) for episodes of `num_chunks` (G,) chunks, at most C; zero beyond an episode's end.

    A chunk gets what the episode's return is above the group's mean, with the chunk's own dense reward, above the mean
    of the group's same chunk, in place of their average. All is divided by `scale` + `eps`.
    """
    inside = torch.arange(int(num_chunks.max())) < num_chunks[:, None]  # (G, C)
    advantages = torch.zeros(inside.shape, dtype=torch.float64)
    for weight, given in zip(weights, rewards, strict=True):
        if given[0].ndim == 0:
            advantages += weight * (torch.stack(given) - torch.stack(given).mean())[:, None]
            continue
        dense = torch.zeros_like(advantages)
        for row, reward in enumerate(given):
            dense[row, : len(reward)] = reward
        advantages += weight * (dense - (dense * inside).sum(dim=0) / inside.sum(dim=0))
    return (advantages * inside / (scale + eps)).float()
