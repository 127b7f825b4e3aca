"""Costs of AIM, counted rather than guessed: memory of a GPU in training, floating-point operations of each stage.

    python benchmarks/budget.py --preset wan2.2-ti2v-5b --gpus 8 --chunks 4 [--lora_rank 64] [--output_file FILE.json]
    python benchmarks/budget.py --preset wan2.1-t2v-1.3b --canvas_size 192 160 --gpus 1 --chunks 4 --lora_rank 64

The model runs on the meta device, so that every matrix product is counted where the code makes it, and every tensor
that autograd keeps is found. Weights and their states follow from the set-up: FSDP2 splits them evenly over the GPUs;
trained weights, gradients, both moments of AdamW and the averaged weights are float32, frozen weights and computation
bfloat16. Left out: the allocator's fragments, communication buffers, and CUDA itself (allow 3 to 5 GB for them).

`hours` are those of `--sequences` at `--share` of the GPUs' peak, `--tflops`: a division, not a measurement. They
include the gradients of all weights, of which LoRA needs only a part.
`rollout_memory_gb` is what a row's keys and values take, with the preset's `history_chunks`, and after 40 chunks
without it.
"""

import argparse
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from common import CANVAS, CELL, TEXT_TOKENS, counted, finish
from latency import make_text_encoder, make_vae

from aim_hf import AIMConfig, AIMForWorldAction
from aim_hf.commands import PathParser
from aim_hf.model import modeling_aim
from aim_hf.model.attention import packed_visible
from aim_hf.model.presets import PRESETS
from aim_hf.training.flow_matching import FlowMatchingLoss

GB = 1e9
BLOCK = 128


def main():
    parser = PathParser(description=__doc__)
    add_set_up(parser)
    parser.add_argument(
        "--lora_rank", type=int, help="train LoRA on the video stream, and the action head and experts in full"
    )
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=640_000, help="that the model is trained on")
    parser.add_argument(
        "--tflops", type=float, default=989, help="peak of a GPU in bfloat16, TFLOP/s; default: H100's"
    )
    parser.add_argument("--share", type=float, default=0.4, help="share of the peak that is reached")
    parser.add_argument("--output_file", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    numbers = training(args, args.gpus)
    seconds = sum(numbers["training_tflop"].values()) / (args.tflops * args.share)
    hours = args.sequences / (args.gpus * args.batch_size) * seconds / 3600
    costs = {"hours": hours, "rollout_tflop": rollout(args), "rollout_memory_gb": rollout_memory(args)}
    finish(numbers | costs | {"serving_gb": serving(args)}, args)


def add_set_up(parser: argparse.ArgumentParser) -> None:
    """Options of the model and of a step on a GPU."""
    parser.add_argument("--preset", default="wan2.2-ti2v-5b", choices=sorted(CANVAS))
    parser.add_argument("--canvas_size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: the preset's")
    parser.add_argument("--chunks", type=int, default=4, help="K, chunks of a packed sequence")
    parser.add_argument("--batch_size", type=int, default=1, help="sequences on a GPU")


def latent_size(args: argparse.Namespace) -> tuple[int, int]:
    height, width = (size // CELL[args.preset] for size in args.canvas_size or CANVAS[args.preset])
    return height, width


def meta_model(preset: str, **changes) -> AIMForWorldAction:
    with torch.device("meta"):
        return AIMForWorldAction(AIMConfig(**PRESETS[preset] | changes)).to(torch.bfloat16)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def training(args: argparse.Namespace, gpus: int) -> dict:
    """Parameters, memory of a GPU in GB where FSDP2 splits over `gpus`, and operations of a step on a GPU."""
    model = meta_model(args.preset)
    config, (height, width) = model.config, latent_size(args)
    total = sum(p.numel() for p in model.parameters())
    acting = (model.action_head, *(layer.action for layer in model.blocks))
    head = sum(p.numel() for part in acting for p in part.parameters())
    trained, frozen = total, 0
    if args.lora_rank:
        named = model.blocks.named_modules()
        layers = [m for name, m in named if isinstance(m, torch.nn.Linear) and ".action." not in name]
        adapters = sum(args.lora_rank * (m.in_features + m.out_features) for m in layers)
        trained, frozen = head + adapters, total  # PEFT keeps the head as it was, beside the trained one
    frames, n, B = args.chunks * config.chunk_latent_frames, config.actions_per_latent_frame, args.batch_size
    forward, backward, activations, (mask, lengths) = step_counts(args.preset, (height, width), args.chunks, B)
    layers = config.num_layers
    rows, columns = height // config.patch_size[1], width // config.patch_size[2]
    video_tokens = (1 + 4 * frames) * rows * columns  # o, x, m and the clean m
    inputs = B * (video_tokens * config.hidden_size + 2 * frames * n * config.action_hidden_size) * 2
    block = 2 * (total - head) / layers  # about, in bfloat16: FSDP gathers one at a time, and the next beside it
    shard = 1 / gpus
    memory = {
        "weights, split": (4 * trained + 2 * frozen) * shard,
        "two gathered blocks, bfloat16": 2 * block,
        "gradients, float32 and split": 4 * trained * shard,
        "AdamW's moments, float32 and split": 8 * trained * shard,
        "averaged weights, float32 and split": 4 * trained * shard,
        "activations": activations,
    }
    checkpointed = layers * inputs + activations / layers
    names = {"full fine-tuning": total, "action head": head, "trained here": trained}
    return {
        "parameters": {name: f"{count / 1e9:.4f} B" for name, count in names.items()},
        "memory_gb": {name: round(size / GB, 2) for name, size in memory.items()}
        | {
            "total": round(sum(memory.values()) / GB, 1),
            "activations with activation checkpointing": round(checkpointed / GB, 2),
            "total with activation checkpointing": round((sum(memory.values()) - activations + checkpointed) / GB, 1),
        },
        "training_tflop": {
            "forward": round(forward, 4),
            "backward": round(backward, 4),
            "recomputed with activation checkpointing": round(forward, 4),
        },
        "attention_blocks": attention_blocks(mask, lengths),
    }


@cache
def step_counts(
    preset: str, size: tuple[int, int], chunks: int, batch_size: int
) -> tuple[float, float, int, tuple[torch.Tensor, list[int]]]:
    """TFLOP of the forward and of the backward pass of a step, the bytes that autograd keeps in between, and the mask
    over units of tokens with their lengths."""
    model = meta_model(preset)
    config, B = model.config, batch_size
    frames = chunks * config.chunk_latent_frames
    actions = (frames + config.action_lookahead_frames) * config.actions_per_latent_frame
    batch = {
        "latents": meta(B, config.in_channels, 1 + frames, *size),
        "value_latents": meta(B, config.in_channels, frames, *size),
        "actions": meta(B, actions, config.action_dim),
        "prompt_embeds": meta(B, TEXT_TOKENS[preset], config.text_dim),
    }
    kept: dict[int, torch.UntypedStorage] = {}
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    losses = []
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        patch.object(modeling_aim, "packed_visible", wraps=packed_visible) as packed,
    ):
        forward = counted(lambda: losses.append(FlowMatchingLoss(config)(model, **batch).loss))
    backward = counted(losses[0].backward)
    return forward, backward, sum(storage.nbytes() for storage in kept.values()), packed.call_args.args[:2]


def attention_blocks(mask: torch.Tensor, lengths: list[int]) -> dict[str, float]:
    """Shares of FlexAttention's blocks of 128 x 128 tokens that are computed whole, computed under the mask, and
    skipped; and the share of token pairs that the mask lets through."""
    unit = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    tokens = torch.nn.functional.pad(mask[unit][:, unit], (0, -len(unit) % BLOCK) * 2)
    blocks = tokens.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).flatten(2)
    full, empty = blocks.all(dim=2).float().mean().item(), 1 - blocks.any(dim=2).float().mean().item()
    pairs = mask[unit][:, unit].float().mean().item()
    shares = {"full": full, "partial": 1 - full - empty, "empty": empty, "visible pairs": pairs}
    return {name: round(share, 3) for name, share in shares.items()}


@torch.no_grad()
def rollout(args: argparse.Namespace) -> dict[str, float]:
    """Operations, in TFLOP, of each stage of a chunk of one row."""
    model = meta_model(args.preset)
    config, (height, width) = model.config, latent_size(args)
    chunk = meta(1, config.in_channels, config.chunk_latent_frames, height, width)
    executed = meta(1, config.actions_per_chunk, config.action_dim)
    actions = meta(1, config.action_horizon, config.action_dim)
    time = meta(1)
    cache = model.new_cache(1, height, width)
    stages = {
        "text, once an episode": lambda: model.set_text(cache, meta(1, TEXT_TOKENS[args.preset], config.text_dim)),
        "first observation": lambda: model.append(cache, chunk[:, :, :1]),
        "world step": lambda: model.world_velocity(model.world_context(cache), chunk, chunk, time),
        "clean pass": lambda: model.action_context(cache, chunk, chunk),
        "action step": lambda: model.action_velocity(contexts[0], actions, time),
        "observed chunk": lambda: model.append(cache, chunk, executed),
    }
    counts, contexts = {}, []
    for name, stage in stages.items():
        counts[name] = counted(stage)
        if name == "first observation":
            contexts.append(model.action_context(cache, chunk, chunk))
    whole = 5 * counts["world step"] + counts["clean pass"] + 10 * counts["action step"]
    counts["a chunk: observed, 5 world steps, clean pass, 10 action steps"] = whole + counts["observed chunk"]
    return {name: float(f"{count:.4g}") for name, count in counts.items()}


def rollout_memory(args: argparse.Namespace) -> dict[str, float]:
    """Memory of a row's keys and values in GB."""
    memory = {}
    for name, changes in (("history_chunks of the preset", {}), ("unlimited, 40 chunks", {"history_chunks": None})):
        model = meta_model(args.preset, **changes)
        cache = model.new_cache(1, *latent_size(args))
        cache.reserve(40 * model.config.chunk_latent_frames)
        memory[name] = round(sum(buffer.nbytes for pair in cache._buffers for buffer in pair) / GB, 4)
    return memory


def serving(args: argparse.Namespace) -> dict[str, float]:
    """Memory of a pipeline in GB: the model and the text encoder in bfloat16, the VAE in float32."""
    model = meta_model(args.preset)
    with torch.device("meta"):
        vae, text_encoder = make_vae(args), make_text_encoder(argparse.Namespace(**vars(args), device="meta"))
    parts = {
        "model": 2 * sum(p.numel() for p in model.parameters()),
        "VAE": 4 * sum(p.numel() for p in vae.parameters()),
        "text encoder": 2 * sum(p.numel() for p in text_encoder.parameters()),
    }
    return {name: size / GB for name, size in parts.items()}


if __name__ == "__main__":
    main()
