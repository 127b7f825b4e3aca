"""Cost of training: supervised tokens a second, share of the device's measured rate, and the gain by packing.

    python benchmarks/training.py --preset tiny [--width 4] --output_file benchmarks/results/training/tiny.json

- `packed`: a step (forward and backward) over `--chunks` chunks in one sequence, each denoised from its own history.
- `packed_over_single_chunk`: supervised tokens a second of that, over those of one chunk at a time, whose history is
  any number of chunks from 0 to `--chunks` - 1, each equally often.
"""

import torch
from common import LATENT_SIZE, TEXT_TOKENS, counted, finish, in_turn, make_model, parser
from latency import matmul_rate

from aim_hf.training.flow_matching import FlowMatchingLoss
from aim_hf.utils.versions import ACTIVATION_CHECKPOINTING


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--chunks", type=int, default=8, help="K, chunks of a packed sequence")
    arguments.add_argument("--compile", action="store_true", help="torch.compile the layers")
    arguments.add_argument("--activation_checkpointing", action="store_true")
    arguments.add_argument("--lora_rank", type=int, help="train adapters of the video stream, and the action experts")
    args = arguments.parse_args()

    model = make_model(args, history_chunks=None).train()
    if args.compile:
        model.compile_blocks()
    if args.activation_checkpointing:
        getattr(model, f"{ACTIVATION_CHECKPOINTING}_enable")()
    if args.lora_rank:
        from aim_hf.training.lora import with_lora  # needs PEFT

        model = with_lora(model, args.lora_rank)
    whole = make_batch(model, args, args.chunks)
    singles = [make_single(model, args, context) for context in range(args.chunks)]
    times = in_turn(
        {
            "packed": lambda: step(model, whole),
            "one chunk at a time": lambda: [single_step(model, *single) for single in singles],
        },
        args.rounds,
        args.device,
    )
    operations = counted(lambda: step(model, whole))
    # Of RGB, value maps and actions of each chunk.
    rows, columns = model._grid(*LATENT_SIZE[args.preset])
    config = model.config
    supervised = 2 * config.chunk_latent_frames * rows * columns + config.action_horizon
    tokens = args.batch_size * args.chunks * supervised
    rate = matmul_rate(model)
    numbers = {
        "step_seconds": times,
        "supervised_tokens_per_second": {name: tokens / seconds for name, seconds in times.items()},
        "packed_over_single_chunk": times["one chunk at a time"] / times["packed"],
        "packed_tflop": operations,
        "matmul_tflop_per_second": rate,
        "packed_share_of_matmul_rate": operations / times["packed"] / rate,
    }
    if args.device != "cpu":
        numbers["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    finish(numbers, args)


def make_batch(model, args, chunks: int) -> dict[str, torch.Tensor]:
    config, frames = model.config, chunks * model.config.chunk_latent_frames

    def randn(*shape):
        return torch.randn(args.batch_size, *shape, device=model.device, dtype=model.dtype)

    return {
        "latents": randn(config.in_channels, 1 + frames, *LATENT_SIZE[args.preset]),
        "value_latents": randn(config.in_channels, frames, *LATENT_SIZE[args.preset]),
        "actions": randn(
            (frames + config.action_lookahead_frames) * config.actions_per_latent_frame, config.action_dim
        ),
        "prompt_embeds": randn(TEXT_TOKENS[args.preset], config.text_dim),
    }


def step(model, batch) -> None:
    model.zero_grad(set_to_none=True)
    FlowMatchingLoss(model.config)(model, **batch).loss.backward()


def make_single(model, args, context: int) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    """The model's inputs for one chunk after `context` chunks of history, and their target velocities."""
    config, F = model.config, model.config.chunk_latent_frames
    window = make_batch(model, args, context + 1)
    x, m = window["latents"][:, None, :, -F:], window["value_latents"][:, None, :, -F:]
    a = window["actions"][:, None, -config.action_horizon :]
    time = torch.full((args.batch_size, 1, F + config.action_lookahead_frames), 0.5, device=model.device)
    given = {
        "latents": window["latents"],
        "value_latents": m[:, 0],
        "executed_actions": window["actions"][:, : (context + 1) * config.actions_per_chunk],
        "prompt_embeds": window["prompt_embeds"],
        "noisy_latents": torch.randn_like(x),
        "noisy_value_latents": torch.randn_like(m),
        "noisy_actions": torch.randn_like(a),
        "timestep": time[..., :F],
        "action_timestep": time,
    }
    return given, (x, m, a)


def single_step(model, given: dict[str, torch.Tensor], targets: tuple[torch.Tensor, ...]) -> None:
    model.zero_grad(set_to_none=True)
    velocities = model(**given).to_tuple()
    sum((v.float() - target).square().mean() for v, target in zip(velocities, targets)).backward()


if __name__ == "__main__":
    main()
