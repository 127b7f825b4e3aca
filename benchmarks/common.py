"""Shared by the benchmarks: the model to measure, its inputs, fair timings, and the file that they leave.

Weights are random: time doesn't depend on them. Alternatives that are compared run in turn, A B A B ..., so that a
machine whose speed drifts slows both; a time is the median over the rounds, and results are quoted as ratios.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from aim_hf import AIMConfig, AIMForWorldAction
from aim_hf.commands import PathParser
from aim_hf.model.presets import PRESETS
from aim_hf.pipeline.sampling import denoise_actions, denoise_world, new_schedulers
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.utils.files import write_json
from aim_hf.utils.provenance import provenance

CANVAS = {"tiny": (96, 96), "wan2.1-t2v-1.3b": (384, 320), "wan2.2-ti2v-5b": (384, 320)}  # pixels
CELL = {"tiny": 16, "wan2.1-t2v-1.3b": 8, "wan2.2-ti2v-5b": 16}  # pixels of a latent cell, by the VAE
LATENT_SIZE = {preset: tuple(size // CELL[preset] for size in canvas) for preset, canvas in CANVAS.items()}
TEXT_TOKENS = {"tiny": 32, "wan2.1-t2v-1.3b": 512, "wan2.2-ti2v-5b": 512}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WORLD_STEPS, ACTION_STEPS = 5, 10  # the pipeline's defaults
TERA = 1e12
# PyTorch's counter doesn't know the CPU's attention kernels. Operations are those of the GPU's, mask or not.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}


def parser(description: str) -> argparse.ArgumentParser:
    arguments = PathParser(description=description)
    arguments.add_argument("--preset", default="tiny", choices=sorted(CANVAS))
    arguments.add_argument("--width", type=int, default=1, help="times the preset's heads, FFN and action head")
    arguments.add_argument("--layers", type=int, help="of both streams, where memory doesn't hold the preset's")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--dtype", choices=sorted(DTYPES), help="default: bfloat16 on a GPU, else float32")
    arguments.add_argument("--batch_size", type=int, default=1, help="rows that run together")
    arguments.add_argument("--rounds", type=int, default=5, help="times that each alternative is measured")
    arguments.add_argument("--output_file", type=Path, help="also write the numbers as JSON")
    return arguments


def make_config(args: argparse.Namespace, **changes) -> AIMConfig:
    config = AIMConfig(**PRESETS[args.preset])
    wider = ("num_attention_heads", "ffn_dim", "action_hidden_size", "action_ffn_dim")
    sizes = {name: args.width * getattr(config, name) for name in wider}
    return AIMConfig(**{**config.to_diff_dict(), **sizes, "num_layers": args.layers or config.num_layers, **changes})


def make_model(args: argparse.Namespace, **changes) -> AIMForWorldAction:
    torch.manual_seed(0)
    dtype = DTYPES[args.dtype] if args.dtype else (torch.bfloat16 if args.device != "cpu" else torch.float32)
    with torch.device(args.device):
        model = AIMForWorldAction(make_config(args, **changes)).to(dtype)
    return model.eval()


def fill_zeros(model: AIMForWorldAction) -> None:
    """Draws the weights that are zero in a new model, whose velocities would be zero, too."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


class Rollout:
    """A batch of rollouts on random observations: a first one, and `history` chunks."""

    def __init__(self, model: AIMForWorldAction, args: argparse.Namespace, history: int = 0):
        self.model, self.rows, self.size = model, args.batch_size, LATENT_SIZE[args.preset]
        config = model.config
        self.schedulers = list(new_schedulers(config).values())
        self.prompt_embeds = self.randn(TEXT_TOKENS[args.preset], config.text_dim)
        latents = self.latents(1 + history * config.chunk_latent_frames)
        self.observe(latents, self.randn(history * config.actions_per_chunk, config.action_dim))

    @torch.no_grad()
    def observe(self, latents: torch.Tensor, actions: torch.Tensor) -> None:
        """Begins anew with a first observation and whole chunks, (B, C, 1 + K*F, h, w), and the actions between them,
        (B, K*F*n, action_dim)."""
        frames, steps = self.model.config.chunk_latent_frames, self.model.config.actions_per_chunk
        self.cache = self.model.new_cache(self.rows, *self.size)
        self.model.set_text(self.cache, self.prompt_embeds)
        self.model.append(self.cache, latents[:, :, :1])
        for chunk in range((latents.shape[2] - 1) // frames):
            seen = latents[:, :, 1 + chunk * frames : 1 + (chunk + 1) * frames]
            self.model.append(self.cache, seen, actions[:, chunk * steps : (chunk + 1) * steps])

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.rows, *shape, device=self.model.device, dtype=self.model.dtype)

    def latents(self, frames: int) -> torch.Tensor:
        return self.randn(self.model.config.in_channels, frames, *self.size)

    def noise(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self.model.config
        world = [self.latents(config.chunk_latent_frames).float() for _ in range(2)]
        return *world, self.randn(config.action_horizon, config.action_dim).float()

    @torch.no_grad()
    def append(self) -> None:
        config = self.model.config
        latents = self.latents(config.chunk_latent_frames)
        self.model.append(self.cache, latents, self.randn(config.actions_per_chunk, config.action_dim))

    def sample(self, world_steps: int = WORLD_STEPS, action_steps: int = ACTION_STEPS) -> None:
        sampling_config = SamplingConfig(world_steps, action_steps)
        sample_chunk(self.model, self.cache, self.noise(), self.schedulers, sampling_config)


def sample_chunk(model, cache, noise, schedulers, sampling_config) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RGB latents, value latents and actions of the next chunk, as a pipeline samples them."""
    *world, actions = noise
    world = denoise_world(model, cache, *world, schedulers[0], sampling_config)
    return *world, denoise_actions(model, cache, *world, actions, schedulers[1], sampling_config)


def in_turn(alternatives: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Seconds of each alternative: the median of `rounds`, after one that isn't counted."""
    times = {name: [] for name in alternatives}
    for _ in range(1 + rounds):
        for name, run in alternatives.items():
            times[name].append(seconds(run, device))
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


def seconds(run: Callable[[], None], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def counted(run: Callable[[], object]) -> float:
    """Operations of matrix products, convolutions and attention in TFLOP, those of a backward pass too."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops() / TERA


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def finish(numbers: dict, args: argparse.Namespace) -> None:
    """Prints the numbers, and writes them with their provenance."""
    settings = {name: value for name, value in vars(args).items() if name != "output_file"}
    device = torch.device(settings.get("device", "meta"))
    result = {"settings": settings} | _rounded(numbers) | provenance(device)
    print(json.dumps(result, indent=2))
    if args.output_file:
        write_json(args.output_file, result, indent=2)


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
