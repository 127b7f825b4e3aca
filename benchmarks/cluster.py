"""Cost of stage 1 on a cluster, on paper: memory, communication, hours and data rates on 8, 64 and 512 GPUs.

    python benchmarks/cluster.py --preset wan2.2-ti2v-5b [--gpus 8 64 512] [--output_file FILE.json]

Operations and memory are counted by `budget.py` on the meta device. Times are divisions of counts by the speeds that
the options assume; nothing is measured. The defaults are an H100 SXM's in a DGX H100:

- `--tflops 989`, `--tf32_tflops 495`: dense peaks of bfloat16 and TF32 (NVIDIA's data sheet of the H100).
- `--share 0.4`: share of the peak that training reaches. Llama 3 reached 0.38 to 0.43 on 8,192 to 16,384 H100s (arXiv
  2407.21783, table 4). Its products are larger than ours with one sequence on a GPU, so expect less.
- `--nvlink 450`, `--network 50`: GB/s that a GPU sends within a machine and beyond it: half of NVLink's 900 GB/s,
  which count both directions, and 400 Gbit/s.
- `--episode_steps 330`, `--episode_mb 1.6`: control steps and Parquet of an episode, as RoboTwin's recordings were.
- `--sequences 640000`: of the recipe in docs/training.md, 20,000 steps of 32. Fewer steps of more sequences on more
  GPUs: the learning rate isn't tuned for that.

Two set-ups are compared. FSDP2 splits everything over all GPUs, and gathers each layer's weights from all of them.
HSDP splits within a machine, and machines average their gradients. Weights are gathered twice a step and gradients
reduced once, in bfloat16, in rings: of n GPUs each sends (n - 1) / n of the bytes, and twice that in an average.

Left out: latency of messages, congestion, the optimizer's step, data loading, checkpoints, failures, evaluation.
`hours` assume that communication hides behind computation (the longer of both counts), `hours_without_overlap` that it
doesn't (their sum).
"""

import argparse
import math
from pathlib import Path

import torch
from budget import GB, add_set_up, latent_size, meta_model, training
from common import CANVAS, TERA, TEXT_TOKENS, counted, finish
from latency import make_text_encoder, make_vae

from aim_hf.commands import PathParser
from aim_hf.pipeline.codec import VideoCodec

BFLOAT16, FLOAT16, FLOAT32 = 2, 2, 4  # bytes
INSTRUCTION_TOKENS = 20  # whose features are stored


def main() -> None:
    parser = PathParser(description=__doc__)
    add_set_up(parser)
    parser.set_defaults(lora_rank=None)  # LoRA isn't trained under FSDP
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--gpus_per_machine", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=30_000)
    parser.add_argument("--episode_steps", type=int, default=330, help="control steps of an episode")
    parser.add_argument("--episode_mb", type=float, default=1.6, help="MB of an episode in Parquet")
    parser.add_argument("--sequences", type=int, default=640_000, help="that the model is trained on")
    parser.add_argument("--sequences_per_step", type=int, default=32, help="at least, by gradient accumulation")
    parser.add_argument("--tflops", type=float, default=989, help="peak of a GPU in bfloat16, TFLOP/s")
    parser.add_argument("--tf32_tflops", type=float, default=495, help="peak of a GPU in TF32, TFLOP/s")
    parser.add_argument("--share", type=float, default=0.4, help="share of the peak that is reached")
    parser.add_argument("--nvlink", type=float, default=450, help="GB/s that a GPU sends within its machine")
    parser.add_argument("--network", type=float, default=50, help="GB/s that a GPU sends to other machines")
    parser.add_argument("--output_file", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    data = dataset(args)
    setups = [(gpus, name, shard) for gpus in args.gpus for name, shard in splits(args, gpus).items()]
    counts = {shard: training(args, shard) for shard in {shard for _, _, shard in setups}}
    rows = [row(args, data, counts[setup[-1]], *setup) for setup in setups]
    finish({"data": data, "encoding": encoding(args, data), "rows": rows}, args)


def splits(args: argparse.Namespace, gpus: int) -> dict[str, int]:
    """Name of a set-up -> GPUs that it splits the weights over."""
    return {"FSDP2": gpus} | ({"HSDP": args.gpus_per_machine} if gpus > args.gpus_per_machine else {})


def row(args: argparse.Namespace, data: dict[str, float], counts: dict, gpus: int, name: str, shard: int) -> dict:
    """Costs of a step of `batch_size` sequences on each GPU, and of the whole training.

    Args:
        counts: of `training`.
        name, shard: of `splits`.
    """
    tflop = sum(counts["training_tflop"].values())
    parameters = 1e9 * float(counts["parameters"]["full fine-tuning"].split()[0])
    nvlink, network = communication(args, parameters, gpus, shard)
    compute = tflop / (args.tflops * args.share)
    exchange = nvlink / args.nvlink + network / args.network
    sequences = gpus * args.batch_size
    hours = math.ceil(args.sequences / sequences) / 3600
    step = max(compute, exchange)
    return {
        "gpus": gpus,
        "set-up": name,
        "memory_gb": counts["memory_gb"]["total with activation checkpointing"],
        "sequences_per_step": max(sequences, args.sequences_per_step),
        "steps": math.ceil(args.sequences / max(sequences, args.sequences_per_step)),
        "tflop_per_gpu": tflop,
        "nvlink_gb": nvlink,
        "network_gb": network,
        "compute_seconds": compute,
        "communication_seconds": exchange,
        "hours": hours * step,
        "hours_without_overlap": hours * (compute + exchange),
        "gpu_hours": hours * step * gpus,
        "latents_read_mb_per_second": sequences * data["window_mb"] / step,
    }


def communication(args: argparse.Namespace, parameters: float, gpus: int, shard: int) -> tuple[float, float]:
    """GB that a GPU sends in a step, within its machine and beyond it."""
    replicas = gpus // shard
    gathered = 2 * BFLOAT16 * parameters  # forward and backward
    reduced = BFLOAT16 * parameters
    ring = (shard - 1) / shard * (gathered + reduced) / GB
    averaged = 2 * (replicas - 1) / replicas * reduced / shard / GB
    return (ring, averaged) if shard <= args.gpus_per_machine else (0.0, ring)


def dataset(args: argparse.Namespace) -> dict[str, float]:
    """Size of the episodes and of their latents."""
    config, (height, width) = meta_model(args.preset).config, latent_size(args)
    frames, n = config.chunk_latent_frames, config.actions_per_latent_frame
    chunks = math.ceil(args.episode_steps / config.actions_per_chunk) + 1  # the last one stands still
    cells = height * width * FLOAT16

    def size(chunks: int) -> float:
        """Bytes of RGB and value latents, value cells, two sets of actions and the instruction's features."""
        latent_frames = chunks * frames
        video = (1 + 2 * latent_frames) * config.in_channels * cells + latent_frames * cells
        return (
            video
            + 2 * latent_frames * n * config.action_dim * FLOAT32
            + INSTRUCTION_TOKENS * config.text_dim * FLOAT16
        )

    windows = args.episodes * max(chunks - args.chunks + 1, 1)
    return {
        "chunks_of_an_episode": chunks,
        "parquet_gb": args.episodes * args.episode_mb / 1e3,
        "latents_gb": args.episodes * size(chunks) / GB,
        "window_mb": size(args.chunks) / 1e6,
        "windows": windows,
        "epochs": args.sequences / windows,
    }


@torch.no_grad()
def encoding(args: argparse.Namespace, data: dict[str, float]) -> dict[str, float]:
    """Operations and GPU hours of encoding all episodes once: RGB and value maps in TF32, instructions in bfloat16."""
    args = argparse.Namespace(**vars(args) | {"device": "meta"})
    config, (height, width) = meta_model(args.preset).config, args.canvas_size or CANVAS[args.preset]
    with torch.device("meta"):
        codec, text_encoder = VideoCodec(make_vae(args)), make_text_encoder(args).to(torch.bfloat16)
        pixels = torch.empty(1, 3, 1 + config.chunk_latent_frames * codec.temporal_factor, height, width)
        prompt = torch.ones(1, TEXT_TOKENS[args.preset], dtype=torch.long)
    state = codec.encoder_state()
    first = counted(lambda: codec.encode(pixels[:, :, :1], state))
    chunk = counted(lambda: codec.encode(pixels[:, :, 1:], state))
    video = args.episodes * (first + 2 * data["chunks_of_an_episode"] * chunk)
    text = args.episodes * counted(lambda: text_encoder(prompt))
    seconds = (video / args.tf32_tflops + text / args.tflops) / args.share
    return {
        "video_pflop": video * TERA / 1e15,
        "text_pflop": text * TERA / 1e15,
        "gpu_hours": seconds / 3600,
        "parquet_mb_per_second_and_gpu": 1e3 * data["parquet_gb"] / seconds,
    }


if __name__ == "__main__":
    main()
