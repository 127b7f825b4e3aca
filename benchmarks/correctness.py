"""Whether a device computes what a CPU does, at small width. Ends with exit code 1 if it doesn't.

    python benchmarks/correctness.py [--device cuda] --output_file benchmarks/results/gpu/correctness.json

Each row is the largest difference of two results over the largest number in them, with the most that is accepted:

- `float32`, `bfloat16`: a sampled chunk after two chunks of history, and the loss and gradients of a packed sequence,
  on the device against the CPU in float32. Products in TF32 are switched off.
- `cached`: the chunk with the cache against every step over the whole prefix, on the device.
- `flex attention`: output and gradients of the compiled kernel under the mask of a packed sequence, against a dense
  mask. A CPU runs it uncompiled, and compares outputs alone.
- `fsdp`: loss and gradients of a model split by FSDP2 over one process against the whole model.
"""

import argparse
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from alternatives import UncachedRollout
from common import DTYPES, LATENT_SIZE, Rollout, fill_zeros, finish, make_config, parser, sample_chunk
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention.flex_attention import flex_attention
from training import make_batch

from aim_hf import AIMForWorldAction
from aim_hf.model.attention import unit_block_mask
from aim_hf.model.visibility import Kind, Units, Visibility, visible
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.training.trainer import whole_tensor

STEPS = SamplingConfig(num_inference_steps=2, num_action_inference_steps=3)
HISTORY = 2  # chunks
ACCEPTED = {"float32": 1e-4, "bfloat16": 0.1, "cached": 1e-4, "flex attention": 1e-4, "fsdp": 1e-5}
Results = dict[str, torch.Tensor]


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = random_model(args)
    rows = {}
    for name in ("float32", "bfloat16"):
        on_device = copied(model, args.device, DTYPES[name])
        rows[name] = largest_difference(chunk_and_gradients(on_device, args), chunk_and_gradients(model, args))
    on_device = copied(model, args.device, torch.float32)
    rows["cached"] = largest_difference(*cached_and_uncached(on_device, args))
    rows["flex attention"] = largest_difference(*flex_and_dense(on_device, args))
    rows["fsdp"] = largest_difference(*split_and_whole(on_device, args))
    wrong = [name for name, difference in rows.items() if not difference <= ACCEPTED[name]]
    finish({"differences": rows, "accepted": ACCEPTED, "passed": not wrong}, args)
    if wrong:
        sys.exit(f"{', '.join(wrong)}: more than is accepted")


def random_model(args: argparse.Namespace) -> AIMForWorldAction:
    """On the CPU, in float32. Actions read the finished map from a pass with RGB and value tokens, whose part with
    value tokens is what `map_only` computes."""
    torch.manual_seed(0)
    model = AIMForWorldAction(make_config(args, history_chunks=HISTORY, visibility="aim"))
    fill_zeros(model)
    return model.eval()


def copied(model: AIMForWorldAction, device: str, dtype: torch.dtype) -> AIMForWorldAction:
    copy = AIMForWorldAction(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(device, dtype).eval()


def episode(model: AIMForWorldAction, args: argparse.Namespace) -> Results:
    """Latents, value latents, actions and prompt of a first frame and `HISTORY` chunks, the same on all devices."""
    on_cpu = argparse.Namespace(config=model.config, device=torch.device("cpu"), dtype=torch.float32)
    torch.manual_seed(1)
    return {name: tensor.to(model.device) for name, tensor in make_batch(on_cpu, args, HISTORY).items()}


def observed(
    model: AIMForWorldAction, args: argparse.Namespace
) -> tuple[Rollout, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A rollout that has seen the episode, and the noise of its next chunk, the same on each device."""
    batch = {name: tensor.to(model.dtype) for name, tensor in episode(model, args).items()}
    config, size = model.config, LATENT_SIZE[args.preset]
    shape = (args.batch_size, config.in_channels, config.chunk_latent_frames, *size)
    shapes = (shape, shape, (args.batch_size, config.action_horizon, config.action_dim))
    noise = tuple(torch.randn(shape).to(model.device) for shape in shapes)
    rollout = Rollout(model, args)
    rollout.prompt_embeds = batch["prompt_embeds"]
    rollout.observe(batch["latents"], batch["actions"])
    return rollout, noise


def chunk_and_gradients(model: AIMForWorldAction, args: argparse.Namespace) -> Results:
    rollout, noise = observed(model, args)
    names = ("rgb", "value", "actions")
    chunk = dict(zip(names, sample_chunk(model, rollout.cache, noise, rollout.schedulers, STEPS)))
    return chunk | loss_and_gradients(model, args)


def loss_and_gradients(model: AIMForWorldAction, args: argparse.Namespace) -> Results:
    """Loss and gradients of all chunks of the episode in one packed sequence, denoised from the middle of their
    trajectories. The gradients are of each layer's query matrices, of the video and of the action expert."""
    batch, config = episode(model, args), model.config
    targets = [batch["latents"][:, None, :, 1:], batch["value_latents"][:, None]]
    times = batch["latents"].new_full((args.batch_size, 1, targets[0].shape[3]), 0.5)
    per_chunk = config.chunk_latent_frames + config.action_lookahead_frames
    targets.append(torch.randn(args.batch_size, 1, HISTORY * config.action_horizon, config.action_dim).to(times))
    model.zero_grad(set_to_none=True)
    velocities = model(
        latents=batch["latents"],
        value_latents=batch["value_latents"],
        executed_actions=batch["actions"][:, : HISTORY * config.actions_per_chunk],
        prompt_embeds=batch["prompt_embeds"],
        noisy_latents=targets[0] / 2,
        noisy_value_latents=targets[1] / 2,
        noisy_actions=targets[2] / 2,
        timestep=times,
        action_timestep=times.new_full((args.batch_size, 1, HISTORY * per_chunk), 0.5),
    ).to_tuple()
    loss = sum((velocity.float() - target).square().mean() for velocity, target in zip(velocities, targets))
    loss.backward()
    matrices = [expert.attn1.to_q.weight for layer in model.blocks for expert in (layer, layer.action)]
    gradients = [whole_tensor(matrix.grad).flatten().float() for matrix in matrices]
    return {"loss": loss.detach(), "gradients": torch.cat(gradients)}


def cached_and_uncached(model: AIMForWorldAction, args: argparse.Namespace) -> tuple[Results, Results]:
    (rollout, noise), batch = observed(model, args), episode(model, args)
    executed = batch["actions"][:, : HISTORY * model.config.actions_per_chunk]
    uncached = UncachedRollout(model, batch["prompt_embeds"], batch["latents"], executed)
    names, steps = ("rgb", "value", "actions"), (STEPS.num_inference_steps, STEPS.num_action_inference_steps)
    return (
        dict(zip(names, sample_chunk(model, rollout.cache, noise, rollout.schedulers, STEPS))),
        dict(zip(names, uncached.sample(noise, rollout.schedulers, *steps))),
    )


def flex_and_dense(model: AIMForWorldAction, args: argparse.Namespace) -> tuple[Results, Results]:
    """Attention of one packed sequence of observations, RGB and value tokens."""
    config, (rows, columns) = model.config, model._grid(*LATENT_SIZE[args.preset])
    frames = torch.arange(1 + HISTORY * config.chunk_latent_frames)
    segments = [(Kind.OBSERVATION, frames), (Kind.FUTURE_RGB, frames[1:]), (Kind.FUTURE_VALUE, frames[1:])]
    units = Units.concatenate([Units.segment(kind, of_kind, config.chunk_latent_frames) for kind, of_kind in segments])
    mask = visible(units, units, config.chunk_latent_frames, config.history_chunks, Visibility(config.visibility))
    lengths = [rows * columns] * len(mask)
    torch.manual_seed(3)
    shape = (args.batch_size, config.num_attention_heads, sum(lengths), config.attention_head_dim)
    backward = model.device.type == "cuda"
    tensors = [torch.randn(shape).to(model.device).requires_grad_(backward) for _ in range(3)]
    blocks = unit_block_mask(mask, lengths, model.device)
    dense = mask.repeat_interleave(rows * columns, 0).repeat_interleave(rows * columns, 1).to(model.device)
    outputs = (
        (torch.compile(flex_attention) if backward else flex_attention)(*tensors, block_mask=blocks),
        F.scaled_dot_product_attention(*tensors, attn_mask=dense),
    )
    results = []
    for output in outputs:
        gradients = torch.autograd.grad(output.sin().sum(), tensors) if backward else ()
        results.append({"output": output.detach()} | {name: g for name, g in zip("qkv", gradients)})
    return results[0], results[1]


def split_and_whole(model: AIMForWorldAction, args: argparse.Namespace) -> tuple[Results, Results]:
    whole = loss_and_gradients(model, args)
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)
    dist.init_process_group("nccl" if model.device.type == "cuda" else "gloo")
    split = copied(model, args.device, torch.float32)
    mesh = init_device_mesh(model.device.type, (1,))
    for layer in split.blocks:
        fully_shard(layer, mesh=mesh)
    results = loss_and_gradients(fully_shard(split, mesh=mesh), args)
    del split, mesh  # threads of the group must not outlive the interpreter
    dist.destroy_process_group()
    return results, whole


def largest_difference(ours: Results, theirs: Results) -> float:
    """The largest difference, relative to the largest number of each tensor."""
    return max(
        ((ours[name].cpu().float() - want.cpu().float()).abs().max() / want.abs().max().cpu().float()).item()
        for name, want in theirs.items()
    )


if __name__ == "__main__":
    main()
