"""Advantages and the clipped objective, on arrays."""

import pytest
import torch

from aim_hf.rl.advantages import group_advantages, group_returns, mean_rewards
from aim_hf.rl.loss import policy_loss, token_weights


def numbers(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


# A sparse reward and a dense one, of three episodes with 2, 1 and 2 chunks.
REWARDS = [numbers(1.0, 0.0, 0.0), numbers([0.2, 0.6], [0.5], [0.0, 0.2])]
CHUNKS = torch.tensor([2, 1, 2])


def test_returns_are_weighted_sums_of_mean_rewards():
    torch.testing.assert_close(mean_rewards(REWARDS), torch.tensor([[1, 0, 0], [0.4, 0.5, 0.1]]).double())
    torch.testing.assert_close(group_returns(REWARDS, [2.0, 1.0]), torch.tensor([2.4, 0.5, 0.1]).double())


def test_a_chunk_is_compared_with_the_same_chunk_of_the_group():
    got = group_advantages(REWARDS, [2.0, 1.0], CHUNKS, scale=0.5, eps=0.0)
    # The sparse part is the episode's, less the group's mean of 1/3; the second chunk's mean is of two episodes.
    dense = torch.tensor([[0.2 - 0.7 / 3, 0.6 - 0.4], [0.5 - 0.7 / 3, 0], [0 - 0.7 / 3, 0.2 - 0.4]])
    sparse = 2 * (torch.tensor([1.0, 0, 0]) - 1 / 3)[:, None]
    inside = torch.tensor([[1.0, 1], [1, 0], [1, 1]])
    torch.testing.assert_close(got, (sparse + dense) * inside / 0.5)


def test_return_to_go_credits_a_chunk_with_what_follows():
    returns = group_returns(REWARDS, [2.0, 1.0], return_to_go=True)
    torch.testing.assert_close(returns, torch.tensor([2.8, 0.5, 0.2]).double())
    got = group_advantages(REWARDS, [0.0, 1.0], CHUNKS, scale=1.0, return_to_go=True, eps=0.0)
    later = numbers([0.8, 0.6], [0.5], [0.2, 0.2])
    torch.testing.assert_close(got, group_advantages([later], [1.0], CHUNKS, scale=1.0, eps=0.0))


def test_equal_rewards_have_no_advantage():
    same = [numbers(0.7, 0.7, 0.7), numbers([0.3, 0.3], [0.3], [0.3, 0.3])]
    assert group_advantages(same, [1.0, 1.0], CHUNKS, scale=1.0).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("ratio", "advantage", "counts"), [(1.5, 1, 1.2), (1.5, -1, 1.5), (0.5, 1, 0.5), (0.5, -1, 0.8)]
)
def test_the_ratio_is_clipped_where_it_would_gain(ratio, advantage, counts):
    old = torch.zeros(1, 1, 1, 1)
    new = torch.full_like(old, ratio).log()
    loss, got = policy_loss(new, old, torch.tensor([[float(advantage)]]), torch.ones_like(old), 0.2, 0.2, beta=0.1)
    assert got.item() == pytest.approx(ratio)
    assert loss.item() == pytest.approx(-counts * advantage + 0.1)


def test_weights_of_tokens():
    share = torch.tensor([1.0, 0.5, 0.0])
    dapo = token_weights(CHUNKS, 2, 4, share, "dapo")
    assert dapo.shape == (3, 2, 4, 3)
    assert torch.equal(dapo[0, 1, 3], share) and not dapo[1, 1].any()
    of_episodes = token_weights(CHUNKS, 2, 4, share, "grpo").sum(dim=(1, 2, 3))
    torch.testing.assert_close(of_episodes, torch.ones(3))
