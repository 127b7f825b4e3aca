"""What the benchmarks compare does the same work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_modeling import C, Episode, H, W, make_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@torch.no_grad()
@pytest.mark.parametrize("config", [{"history_chunks": 3}, {"action_lookahead_frames": 1}], ids=str)
def test_the_uncached_rollout_gives_what_the_cached_one_gives(config, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from alternatives import UncachedRollout
    from common import sample_chunk
    from diffusers import FlowMatchEulerDiscreteScheduler

    model = make_model(**config)
    episode = Episode(model, 0)
    seen = []
    for _ in range(6):
        seen.append(episode.next_observation())
        model.append(episode.cache, *seen[-1])
    latents, actions = torch.cat([o for o, _ in seen], dim=2), torch.cat([a for _, a in seen[1:]], dim=1)
    uncached = UncachedRollout(model, episode.text, latents, actions)
    rgb, value, action = episode.prediction_inputs()
    action = episode.randn(1, model.config.action_horizon, 5)
    t = torch.tensor([0.4], dtype=torch.float64)
    for got, want in zip(uncached.denoise_world(rgb, value, t), model.denoise_world(episode.cache, rgb, value, t)):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    model.condition_actions(episode.cache, rgb, value)
    want = model.denoise_actions(episode.cache, action, t)
    torch.testing.assert_close(uncached.denoise_actions(rgb, value, action, t), want, rtol=0, atol=1e-9)

    noise = tuple(tensor.float() for tensor in (rgb, value, action))
    assert noise[0].shape == (1, C, 2, H, W)
    schedulers = [FlowMatchEulerDiscreteScheduler(shift=shift) for shift in (5.0, 1.0)]
    ours = sample_chunk(model, episode.cache, noise, *schedulers, num_inference_steps=3, num_action_inference_steps=4)
    for got, want in zip(uncached.sample(noise, schedulers, 3, 4), ours):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("command", "ratios"),
    [
        (["rollout.py", "--history", "2", "--chunks", "3"], ["flatness_after_window", "uncached_over_cached_at_16"]),
        (["training.py", "--chunks", "2"], ["packed_over_single_chunk"]),
        (
            ["latency.py", "--history", "1"],
            ["backbone_action_loop_over_ours", "lingbot_settings_over_ours", "action_step_over_video_step"],
        ),
        (["grpo.py", "--chunks", "2"], ["plain_over_ours", "replayed_over_ours"]),
        (["budget.py"], []),
    ],
    ids=lambda value: value[0] if value else "",
)
def test_the_commands_run(command, ratios, tmp_path):
    output = tmp_path / "new" / "numbers.json"
    small = [] if command == ["budget.py"] else ["--layers", "1", "--rounds", "1", "--device", "cpu"]
    command = [sys.executable, str(BENCHMARKS / command[0]), *command[1:], *small, "--preset", "tiny"]
    subprocess.run([*command, "--output", str(output)], check=True, capture_output=True)
    numbers = json.loads(output.read_text())
    for name in ratios:
        assert numbers[name] > 0
    assert numbers["commit"] and numbers["hardware"] and numbers["command"]


def test_the_plain_learner_learns_the_same(monkeypatch):
    """Gradients of the likelihood alone: the reference is of another model there."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import grpo

    from aim_hf.training.policy import ActionPolicy, FlowSDE

    model, plain = make_model(), make_model()
    policy = ActionPolicy(model, grpo.TIMES, FlowSDE(0.7), torch.ones(5, dtype=torch.bool), own_reference=False)
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    group = {
        "prompt_embeds": randn(5, 10),
        "first": randn(C, 1, H, W),
        **{name: randn(2, 2, C, 2, H, W) for name in ("rgb", "value", "observed")},
        "executed": randn(2, 2, 6, 5),
        "steps": torch.tensor([[1, 4], [0, 7]]),
        "before": randn(2, 2, 2, 6, 5),
        "after": randn(2, 2, 2, 6, 5),
        "num_chunks": torch.tensor([2, 2]),
    }
    plain.requires_grad_(False)
    plain.action_head.requires_grad_(True)
    grpo.learn(policy, [group])
    whole = {name: p.grad.clone() for name, p in policy.head.named_parameters()}
    grpo.learn(policy, [grpo.step_of(group, index) for index in range(2)])
    for name, parameter in policy.head.named_parameters():
        torch.testing.assert_close(parameter.grad / 2, whole[name], rtol=1e-4, atol=1e-5)
    # The plain one also lets the gradient pass through executed actions; in the first chunk there are none.
    first = {name: group[name][:, :1] for name in ("rgb", "value", "observed", "executed", "before", "after")}
    first = group | first | {"steps": group["steps"][:1], "num_chunks": torch.tensor([1, 1])}
    grpo.learn(policy, [first])
    grpo.learn_plainly(plain, policy.sde, first)
    for name, parameter in plain.action_head.named_parameters():
        mine = dict(policy.head.named_parameters())[name].grad
        # A sum over two steps of means over five numbers, against a mean over steps of sums.
        torch.testing.assert_close(parameter.grad * 5 / 2, mine, rtol=1e-4, atol=1e-5)
