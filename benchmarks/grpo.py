"""Cost of learning from a rollout, when all denoising steps are trained.

    python benchmarks/grpo.py --preset tiny --batch_size 8 --output_file benchmarks/results/grpo/tiny.json

One group: `--batch_size` episodes of `--chunks` chunks, 10 denoising steps of which 9 are random; forward and backward
of the whole objective, the KL divergence from the reference included.

- `ours`: each chunk's keys and values are rebuilt once, and then only the action heads run, on all steps at once.
- `replayed_over_ours`: the same, with the video branch run again for each step.
- `plain_over_ours`: no keys and values are kept: each step of each chunk runs both streams over the whole prefix.
"""

import torch
from alternatives import UncachedRollout
from common import ACTION_STEPS, LATENT_SIZE, TEXT_TOKENS, finish, in_turn, make_model, parser

from aim_hf import AIMForWorldAction
from aim_hf.rl.policy import ActionPolicy, FlowSDE, kl_divergence, log_density

TIMES = [1 - step / ACTION_STEPS for step in range(ACTION_STEPS)] + [0.0]


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--chunks", type=int, default=6)
    args = arguments.parse_args()
    model = make_model(args, history_chunks=None)
    config, rows, steps = model.config, args.batch_size, ACTION_STEPS - 1
    mask = torch.ones(config.action_dim, dtype=torch.bool, device=model.device)
    policy = ActionPolicy(model, TIMES, FlowSDE(0.7), mask)
    plain = make_model(args, history_chunks=None).requires_grad_(False)
    for part in (plain.action_head, *(layer.action for layer in plain.blocks)):
        part.requires_grad_(True)

    def randn(*shape):
        return torch.randn(shape, device=model.device, dtype=model.dtype)

    video = config.in_channels, config.chunk_latent_frames, *LATENT_SIZE[args.preset]
    samples = rows, args.chunks, steps, config.action_horizon, config.action_dim
    group = {
        "prompt_embeds": randn(TEXT_TOKENS[args.preset], config.text_dim),
        "first": randn(config.in_channels, 1, *LATENT_SIZE[args.preset]),
        **{name: randn(rows, args.chunks, *video) for name in ("rgb", "value", "observed")},
        "executed": randn(rows, args.chunks, config.actions_per_chunk, config.action_dim),
        "steps": torch.arange(steps).expand(args.chunks, steps),
        "before": randn(*samples).float(),
        "after": randn(*samples).float(),
        "num_chunks": torch.full((rows,), args.chunks, device=model.device),
    }
    times = in_turn(
        {
            "ours": lambda: learn(policy, [group]),
            "replayed": lambda: learn(policy, [step_of(group, index) for index in range(steps)]),
            "plain": lambda: learn_plainly(plain, policy.sde, group),
        },
        args.rounds,
        args.device,
    )
    numbers = {
        "seconds": times,
        "trained_steps_per_second": {name: rows * args.chunks * steps / time for name, time in times.items()},
        "replayed_over_ours": times["replayed"] / times["ours"],
        "plain_over_ours": times["plain"] / times["ours"],
    }
    finish(numbers, args)


def step_of(group: dict, index: int) -> dict:
    """The group with one of its random steps."""
    one = {name: group[name][:, :, index : index + 1] for name in ("before", "after")}
    return group | one | {"steps": group["steps"][:, index : index + 1]}


def learn(policy: ActionPolicy, groups: list[dict]) -> None:
    policy.zero_grad(set_to_none=True)
    for group in groups:
        ((log_probs, divergence),), _ = policy([group])
        (divergence - log_probs).mean().backward()


def learn_plainly(model: AIMForWorldAction, sde: FlowSDE, group: dict) -> None:
    model.zero_grad(set_to_none=True)
    rows, chunks = group["rgb"].shape[:2]
    prompt_embeds = group["prompt_embeds"].expand(rows, -1, -1)
    latents, actions = group["first"].expand(rows, -1, -1, -1, -1), group["executed"][:, :0].flatten(1, 2)
    for chunk in range(chunks):
        rollout = UncachedRollout(model, prompt_embeds, latents, actions)
        rgb, value = group["rgb"][:, chunk], group["value"][:, chunk]
        for index, step in enumerate(group["steps"][chunk].tolist()):
            x, (t, s) = group["before"][:, chunk, index], TIMES[step : step + 2]
            velocities = []
            for grad in (True, False):  # the policy, and its reference, which costs what the policy does
                with torch.set_grad_enabled(grad):
                    velocities.append(rollout.action_velocity(rgb, value, x, x.new_full((rows,), t)))
            (mean, std), (old, _) = (sde.step(x, velocity, t, s) for velocity in velocities)
            log_probs = log_density(group["after"][:, chunk, index], mean, std)
            (kl_divergence(mean, old, std) - log_probs).mean().backward()
        latents = torch.cat([latents, group["observed"][:, chunk]], dim=2)
        actions = torch.cat([actions, group["executed"][:, chunk]], dim=1)


if __name__ == "__main__":
    main()
