"""The stochastic policy: marginals, likelihoods, and what its training touches."""

import copy
from functools import partial

import pytest
import torch

from aim_hf.rl.policy import ActionPolicy, FlowSDE, kl_divergence, log_density, sample

from ..model.test_modeling import C, H, S, W, make_model

TIMES = torch.linspace(1, 0, 11, dtype=torch.float64).tolist()
MEAN, STD = 0.7, 0.3


def gaussian_velocity(x, t, std=STD):
    """Exact, of data N(MEAN, STD^2): x_t is N((1 - t) MEAN, (1 - t)^2 STD^2 + t^2)."""
    t = t.view(-1, *[1] * (x.ndim - 1))
    variance = (1 - t) ** 2 * std**2 + t**2
    centered = (x - (1 - t) * MEAN) / variance
    noise, clean = t * centered, MEAN + (1 - t) * std**2 * centered
    return noise - clean


def std_of_data(t):
    return ((1 - t) ** 2 * STD**2 + t**2) ** 0.5


@pytest.mark.parametrize("noise_level", [0.5, 1.0])
def test_the_sde_keeps_the_marginals_of_a_gaussian(noise_level):
    times = torch.linspace(1, 0, 201, dtype=torch.float64).tolist()
    generator = torch.Generator().manual_seed(0)
    count, steps = 50_000, list(range(199))
    noise = torch.randn(count, 1, 1, generator=generator, dtype=torch.float64)
    z = torch.randn(count, 199, 1, 1, generator=generator, dtype=torch.float64)
    x, decisions = sample(gaussian_velocity, noise, times, FlowSDE(noise_level), steps, z)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x.std().item() == pytest.approx(STD, abs=0.01)
    for index, t in enumerate(times[1:-1]):  # and so at every time
        at = decisions.after[:, index]
        assert at.mean().item() == pytest.approx((1 - t) * MEAN, abs=0.02)
        assert at.std().item() == pytest.approx(std_of_data(t), abs=0.02)


@pytest.mark.parametrize("std", [0.3, 0.03])
def test_at_ten_steps_it_samples_what_the_ode_does(std):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(50_000, 1, 1, generator=generator, dtype=torch.float64)
    z = torch.randn(50_000, 9, 1, 1, generator=generator, dtype=torch.float64)
    velocity = partial(gaussian_velocity, std=std)
    ode = noise
    for t, s in zip(TIMES, TIMES[1:]):
        ode = ode - (t - s) * velocity(ode, ode.new_full((len(ode),), t))
    sde, decisions = sample(velocity, noise, TIMES, FlowSDE(0.7), list(range(9)), z)
    assert sde.std().item() == pytest.approx(ode.std().item(), rel=0.05)
    assert decisions.after[:, 0].std().item() == pytest.approx(std_of_data(TIMES[1]), rel=0.01)


def test_without_noise_it_is_the_ode():
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 4, 3, 2, generator=generator, dtype=torch.float64)
    for t, s in zip(TIMES, TIMES[1:]):
        mean, std = FlowSDE(0.0).step(x, v, t, s)
        torch.testing.assert_close(mean, x - (t - s) * v)
        assert std == 0


@pytest.mark.parametrize("modes", [1, 2])
def test_renewing_some_modes_of_the_noise_keeps_the_marginals(modes):
    """Of each action, and of any two: what is renewed of white noise is white."""
    count, actions = 25_000, 4
    generator = torch.Generator().manual_seed(0)
    sde, times = FlowSDE(1.0, modes), torch.linspace(1, 0, 201, dtype=torch.float64).tolist()
    noise = torch.randn(count, actions, 1, generator=generator)
    z = torch.randn(count, 199, modes, 1, generator=generator)
    x, decisions = sample(gaussian_velocity, noise, times, sde, list(range(199)), z)
    for t, at in [(0.0, x)] + [(times[index + 1], decisions.after[:, index]) for index in (50, 100, 150)]:
        torch.testing.assert_close(at.mean(dim=0), torch.full((actions, 1), (1 - t) * MEAN), rtol=0, atol=0.02)
        expected = std_of_data(t) ** 2 * torch.eye(actions)
        torch.testing.assert_close(torch.cov(at[..., 0].T), expected, rtol=0, atol=0.02)
    # What is renewed forgets where it started from; the rest is the ODE's, MEAN + STD * noise.
    left = torch.eye(actions) - (sde.basis(actions).T @ sde.basis(actions)).float()
    remembered = torch.einsum("bi,bj->ij", x[..., 0] - MEAN, noise[..., 0]) / count / STD
    torch.testing.assert_close(remembered, left, rtol=0, atol=0.05)


def test_modes_are_those_of_the_cosine_transform():
    sde = FlowSDE(0.7, noise_modes=3)
    basis = sde.basis(8)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(basis[0], torch.full((8,), 8**-0.5, dtype=torch.float64))
    torch.testing.assert_close(basis[1] / basis[1, 0], -basis[1].flip(0) / basis[1, 0])  # odd: from one end to another
    x = torch.randn(5, 8, 2, dtype=torch.float64)
    torch.testing.assert_close(sde.to_modes(x), basis @ x)
    torch.testing.assert_close(sde.from_modes(x[:, :3], 8), basis.T @ x[:, :3])
    whole = FlowSDE(0.7, noise_modes=8)
    torch.testing.assert_close(whole.from_modes(whole.to_modes(x), 8), x)
    with pytest.raises(ValueError, match="noise_modes is 3; expected at most 2"):
        sde.to_modes(x[:, :2])
    with pytest.raises(ValueError, match="noise_modes is 0"):
        FlowSDE(0.7, noise_modes=0)


def test_with_all_modes_it_is_the_same_step_and_likelihood():
    """A rotation of the numbers that noise is added to changes neither."""
    generator = torch.Generator().manual_seed(0)
    x, v, z = torch.randn(3, 6, 8, 2, generator=generator, dtype=torch.float64)
    plain, cosine = FlowSDE(0.7), FlowSDE(0.7, noise_modes=8)
    (mean, std), (same_mean, same_std) = (sde.step(x, v, 0.6, 0.5) for sde in (plain, cosine))
    torch.testing.assert_close(same_mean, mean)
    assert same_std == std
    taken = mean + std * z
    of_actions, of_modes = (
        log_density(sde.to_modes(taken), sde.to_modes(mean), std).sum(dim=(1, 2)) for sde in (plain, cosine)
    )
    torch.testing.assert_close(of_modes, of_actions)


def test_a_small_step_is_the_papers():
    """Mean x - dt [v + sigma^2 / (2t) eps] and standard deviation sigma sqrt(dt), to first order."""
    x, v = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[-1.1]], dtype=torch.float64)
    t, dt, a = 0.6, 1e-5, 0.7
    mean, std = FlowSDE(a).step(x, v, t, t - dt)
    variance = a**2 * t / (1 - t)
    expected = x - dt * (v + variance / (2 * t) * (x + (1 - t) * v))
    torch.testing.assert_close(mean - x, expected - x, rtol=1e-4, atol=0)
    assert std == pytest.approx((variance * dt) ** 0.5, rel=1e-4)


def test_the_last_random_steps_make_most_of_the_gradient():
    """As docs/stage2.md says: a step to s weighs about (1 - s) / s in the squared gradient of the likelihood."""
    times = [1 - step / 10 for step in range(10)]
    squares = []
    for t, s in zip(times, times[1:]):
        x, velocity = (
            torch.zeros(1, 1, dtype=torch.float64),
            torch.zeros(1, 1, dtype=torch.float64, requires_grad=True),
        )
        mean, std = FlowSDE(0.7).step(x, velocity, t, s)
        log_density((mean + std).detach(), mean, std).backward()  # one deviation from the mean
        squares.append(velocity.grad.item() ** 2)
    weights = [(1 - s) / s for s in times[1:]]
    for square, weight in zip(squares[1:], weights[1:]):
        assert 0.6 < square / sum(squares) / (weight / sum(weights)) < 1.2
    assert sum(squares[-2:]) / sum(squares) == pytest.approx(0.732, abs=1e-3)


def test_the_last_step_has_no_noise_and_no_likelihood():
    x, v = torch.ones(2, 3), torch.full((2, 3), 0.5)
    mean, std = FlowSDE(0.7).step(x, v, 0.1, 0.0)
    assert std == 0 and torch.equal(mean, x - 0.1 * v)
    with pytest.raises(ValueError, match=r"random steps are \[9\]; expected some of 0 to 8"):
        sample(gaussian_velocity, torch.ones(1, 1, 1), TIMES, FlowSDE(0.7), [9], torch.ones(1, 1, 1, 1))
    with pytest.raises(ValueError, match="noise_level is -1"):
        FlowSDE(-1)


@pytest.mark.parametrize("modes", [None, 1, 2])
def test_the_last_step_may_be_given_noise(modes):
    """Of the same size for each action, on average, however many modes share it."""
    sde, generator = FlowSDE(0.7, modes, last_step_std=0.2), torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 8, 1, generator=generator, dtype=torch.float64)
    z = torch.randn(20_000, 1, sde.num_modes(8), 1, generator=generator, dtype=torch.float64)
    x, decisions = sample(gaussian_velocity, noise, TIMES, sde, [9], z)
    ode = decisions.before[:, 0] - TIMES[9] * gaussian_velocity(
        decisions.before[:, 0], torch.full((20_000,), TIMES[9], dtype=torch.float64)
    )
    assert (x - ode).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.02)
    assert torch.equal(decisions.after[:, 0], x)
    if modes == 1:
        torch.testing.assert_close(x - ode, (x - ode)[:, :1].expand_as(x))
    with pytest.raises(ValueError, match=r"random steps are \[10\]; expected some of 0 to 9"):
        sample(gaussian_velocity, noise, TIMES, sde, [10], z)
    with pytest.raises(ValueError, match="last_step_std is -1"):
        FlowSDE(0.7, last_step_std=-1)


def test_densities_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    x, mean, other = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    normal = torch.distributions.Normal(mean, 0.3)
    torch.testing.assert_close(log_density(x, mean, 0.3), normal.log_prob(x))
    exact = torch.distributions.kl_divergence(normal, torch.distributions.Normal(other, 0.3))
    torch.testing.assert_close(kl_divergence(mean, other, 0.3), exact)


def make_group(model, chunks=3, rows=4, seed=0):
    """States and random steps as a rollout of the policy would leave them, taken by it."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    dtype = model.dtype

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    F, n = config.chunk_latent_frames, config.actions_per_latent_frame
    return dict(
        prompt_embeds=randn(S, config.text_dim),
        first=randn(C, 1, H, W),
        rgb=randn(rows, chunks, C, F, H, W),
        value=randn(rows, chunks, C, F, H, W),
        observed=randn(rows, chunks, C, F, H, W),
        executed=randn(rows, chunks, F * n, config.action_dim),
        steps=torch.tensor([[2, 5], [0, 8], [3, 4]])[:chunks],
        before=randn(rows, chunks, 2, config.action_horizon, config.action_dim),
        after=randn(rows, chunks, 2, config.action_horizon, config.action_dim),
        num_chunks=torch.full((rows,), chunks),
    )


def acts(name):
    return name.startswith("action_head.") or ".action." in name


def make_policy(model):
    mask = torch.tensor([True] * (model.config.action_dim - 1) + [False])
    return ActionPolicy(model, TIMES, FlowSDE(0.7), mask)


@pytest.mark.parametrize("history", [None, 1])
def test_gradients_reach_the_action_head_alone_and_the_world_stays(history):
    model = make_model(history_chunks=history, action_lookahead_frames=1)
    group = make_group(model)
    before = copy.deepcopy(model.state_dict())
    policy = make_policy(model)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    ((log_probs, divergence),), _ = policy([group])
    assert log_probs.shape == divergence.shape == (4, 3, 2, model.config.action_horizon)
    assert torch.all(divergence == 0)  # the policy is its own reference still
    log_probs.sum().backward()
    optimizer.step()
    after = model.state_dict()
    for name, tensor in before.items():
        if acts(name):
            frozen = name.replace("action_head.", "history_head.").replace(".action.", ".history.")
            assert torch.equal(after[frozen], tensor)
            assert not torch.equal(after[name], tensor) or "proj_out" not in name, name
        else:
            assert torch.equal(after[name], tensor), name
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, _ in model.named_parameters() if acts(name)
    }
    ((changed, divergence),), _ = policy([group])
    assert not torch.equal(changed, log_probs) and divergence.sum() > 0

    model.join_history_head()  # what stage 1 left is in there still
    assert model.state_dict().keys() == before.keys() and not model.config.separate_history_head
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("history", [None, 1])
def test_what_is_imagined_does_not_depend_on_the_trained_head(history):
    """Executed actions reach the video stream, so a head of their own has to encode them."""
    model = make_model(history_chunks=history)

    def worlds():
        group = make_group(model)
        cache = model.new_cache(4, H, W)
        model.set_text(cache, group["prompt_embeds"].expand(4, -1, -1))
        model.append(cache, group["first"].expand(4, -1, -1, -1, -1))
        outputs = []
        for chunk in range(3):
            time = torch.full((4,), 0.5, dtype=torch.float64)
            outputs += model.world_velocity(
                model.world_context(cache), group["rgb"][:, chunk], group["value"][:, chunk], time
            )
            model.append(cache, group["observed"][:, chunk], group["executed"][:, chunk])
        return outputs

    before = worlds()
    model.separate_history_head()
    for name, parameter in model.named_parameters():
        if acts(name):
            parameter.add_(torch.randn_like(parameter))
    for new, old in zip(worlds(), before):  # where a product's result lies in memory may change its last bit
        torch.testing.assert_close(new, old, rtol=0, atol=1e-13)
    model.history_head = None  # as it would be without
    for layer in model.blocks:
        layer.history = None
    later = worlds()
    for new, old in zip(later[:2], before[:2]):  # nothing executed yet
        torch.testing.assert_close(new, old, rtol=0, atol=1e-13)
    for new, old in zip(later[2:], before[2:]):
        assert (new - old).abs().max() > 1e-3


def test_numbers_that_are_no_part_of_the_action_do_not_count():
    policy = make_policy(make_model())
    group = make_group(policy.model)
    ((expected, _),), _ = policy([group])
    group["after"][..., -1] += 5
    assert torch.equal(policy([group])[0][0][0], expected)
    group["after"][..., 0] += 5
    assert not torch.equal(policy([group])[0][0][0], expected)


def test_episodes_that_have_ended_are_left_out_and_change_nothing():
    policy = make_policy(make_model(history_chunks=1))
    with torch.no_grad():  # away from its reference
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    group = make_group(policy.model)
    (whole,), _ = policy([group])
    group["num_chunks"] = torch.tensor([2, 3, 1, 3])
    (ended,), _ = policy([group])
    for values, expected in zip(ended, whole):
        for row, chunks in enumerate(group["num_chunks"]):
            torch.testing.assert_close(values[row, :chunks], expected[row, :chunks], rtol=0, atol=1e-12)
            assert torch.all(values[row, chunks:] == 0) and torch.all(expected[row, chunks:] != 0)


def test_a_gradient_goes_through_the_keys_of_its_own_step_or_not_at_all():
    """Steps write their keys to the context: a later step on the same context invalidates the backward pass of an
    earlier one."""
    model = make_model()
    group = make_group(model)
    with torch.no_grad():
        cache = model.new_cache(4, H, W)
        model.set_text(cache, group["prompt_embeds"].expand(4, -1, -1))
        model.append(cache, group["first"].expand(4, -1, -1, -1, -1))
        context = model.action_context(cache, group["rgb"][:, 0], group["value"][:, 0])
    times = torch.full((4,), 0.5, dtype=torch.float64)
    steps = [group["before"][:, 0, index] for index in range(2)]

    def gradient(first, second):
        model.zero_grad()
        velocity = model.action_velocity(first, steps[0], times)
        with torch.no_grad():
            model.action_velocity(second, steps[1], times)
        velocity.square().sum().backward()
        return model.blocks[0].action.attn1.to_k.weight.grad

    alone = gradient(context.repeat_interleave(1), context.repeat_interleave(1))
    assert alone.abs().max() > 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(*[context.repeat_interleave(1)] * 2)
    torch.testing.assert_close(gradient(context, context.repeat_interleave(1)), alone, rtol=0, atol=1e-12)


def test_a_compiled_model_is_trained_like_another():
    """Each parameter of the head has the gradient that it has without `compile_blocks`."""
    gradients = []
    for compiled in (False, True):
        model = make_model(num_layers=1)
        if compiled:
            model.compile_blocks(backend="eager")
        policy = make_policy(model)
        ((log_probs, _),), _ = policy([make_group(model, chunks=1)])
        log_probs.sum().backward()
        gradients.append({name: parameter.grad for name, parameter in policy.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-9, msg=name)
        assert gradient.abs().max() > 0 or "to_k.bias" in name, name
