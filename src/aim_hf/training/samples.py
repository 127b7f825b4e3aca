"""Sampled chunks of held-out episodes during training, as metrics and as a picture.

The value loss says little about success, since most of a map is black. The distance between the predicted and the true
peak decides whether the robot touches the right object. Actions are sampled twice, from the predicted and from the
true map, which separates errors of the map from errors of the action head.
"""

from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from torch.utils.data import default_collate
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..data.latent_windows import LatentWindows
from ..envs.base import CAMERAS
from ..model.modeling_aim import AIMForWorldAction
from ..model.processing_aim import AIMProcessor
from ..pipeline.codec import VideoCodec
from ..pipeline.sampling import denoise_actions, denoise_world, new_schedulers, prepare_latents
from ..pipeline.sampling_config import SamplingConfig
from ..utils.extras import extra
from ..utils.files import written_file
from ..value_maps.peak import peak
from .arguments import AIMTrainingArguments
from .trainer import AIMTrainer


@torch.no_grad()
def sample_first_chunk(
    model: AIMForWorldAction,
    batch: dict[str, torch.Tensor],
    sampling: SamplingConfig,
    generator: torch.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """Samples the first chunk of each window, given its first latent frame.

    Returns:
        rgb, value (B, C, F, h, w); actions and actions_from_true_map (B, action_horizon, action_dim), normalized.
    """
    config, latents = model.config, batch["latents"]
    B, _, _, height, width = latents.shape
    cache = model.new_cache(B, height, width)
    model.set_text(cache, batch["prompt_embeds"])
    model.append(cache, latents[:, :, :1])
    *world, noise = prepare_latents(config, sampling, B, (height, width), generator, latents.device)
    scheduler, action_scheduler = new_schedulers(config).values()
    rgb, value = denoise_world(model, cache, *world, scheduler, sampling)
    true_value = batch["value_latents"][:, :, : config.chunk_latent_frames].to(rgb)
    actions, from_true_map = (
        denoise_actions(model, cache, rgb, used, noise, action_scheduler, sampling) for used in (value, true_value)
    )
    return {"rgb": rgb, "value": value, "actions": actions, "actions_from_true_map": from_true_map}


def head_peaks(codec: VideoCodec, processor: AIMProcessor, value_latents: torch.Tensor) -> torch.Tensor:
    """Peak of the head camera's value map in the last frame, (B, 3): x and y on the canvas, and the map's maximum in
    [0, 1]. Without a head camera, the first available camera of `CAMERAS` is used."""
    canvas = processor.pixels_to_canvas(codec.decode_value_maps(value_latents))[:, -1]
    first = next(camera for camera in CAMERAS if camera in processor.cameras)
    top, left, h, w = processor.cameras[first]["slot"]
    value_maps = processor.rgb_to_value(canvas)[:, top : top + h, left : left + w]
    peaks = [(*peak(value_map), value_map.max()) for value_map in value_maps]
    return torch.tensor([(left + x, top + y, maximum) for x, y, maximum in peaks])


class SampleCallback(TrainerCallback):
    """Samples the first chunks of held-out episodes with the averaged weights, every `args.sample_steps` steps.

    Adds metrics to the next log (prefix `sample_`): `peak_error`, median distance of the value map's peak in canvas
    pixels, and `peak_within`, share of peaks closer than 10 % of the canvas width, both over episodes with a value
    map; `action_error` and `action_error_true_map`, mean absolute errors of normalized actions, the latter over
    episodes whose maps are known. Writes `samples/step-N.png`. Does nothing if no episode is held out.

    Args:
        held_out: the first chunk of each episode.
    """

    def __init__(self, trainer: AIMTrainer, held_out: LatentWindows, codec: VideoCodec, folder: Path):
        self.trainer, self.codec, self.processor, self.folder = trainer, codec, held_out.processor, folder
        self.titles = [f"{entry['task']}: {entry['instruction']}" for entry in held_out.entries]
        self.batch = default_collate([held_out[i] for i in range(len(held_out))]) if len(held_out) else None
        if trainer.args.sample_steps and self.batch:
            with extra("plot"):
                import matplotlib  # noqa: F401  a missing package is reported now, not in the middle of training

    def on_step_end(
        self, args: AIMTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = args.sample_steps and state.global_step % args.sample_steps == 0
        if due and self.batch and state.is_world_process_zero:
            self.sample(state.global_step)

    def sample(self, step: int) -> dict[str, float]:
        """Samples all held-out episodes, writes the picture, and returns the metrics."""
        batch = {name: tensor.to(self.trainer.args.device) for name, tensor in self.batch.items()}
        generator = torch.Generator().manual_seed(0)
        with self.trainer.averaged_model() as model, self.trainer.accelerator.autocast():
            model.eval()
            sampled = sample_first_chunk(model, batch, self.trainer.args.sampling_config, generator)
            model.train()
        config = self.trainer.model.config
        true_value = batch["value_latents"][:, :, : config.chunk_latent_frames]
        true_actions = batch["actions"][:, : config.action_horizon]
        true_peaks = head_peaks(self.codec, self.processor, true_value)
        peaks = head_peaks(self.codec, self.processor, sampled["value"])
        known = torch.ones(len(true_peaks), dtype=torch.bool)
        if "value_mask" in batch:
            known = batch["value_mask"].flatten(1).amax(dim=1).cpu() > 0
        has_map = known & (true_peaks[:, 2] > 0.5)
        distance = (peaks - true_peaks)[has_map, :2].norm(dim=1)
        metrics = {"sample_action_error": (sampled["actions"] - true_actions).abs().mean().item()}
        if has_map.any():
            metrics["sample_peak_error"] = distance.median().item()
            within = distance < 0.1 * self.processor.canvas_size[1]
            metrics["sample_peak_within"] = within.float().mean().item()
        if known.any():
            error = (sampled["actions_from_true_map"] - true_actions)[known].abs().mean().item()
            metrics["sample_action_error_true_map"] = error
        # Not trainer.log: called within a step, it would suppress that step's own log, in this process only.
        self.trainer.sample_metrics = metrics
        self._draw(batch, sampled, true_value, true_actions, metrics, self.folder / f"step-{step:07d}.png")
        return metrics

    def _draw(
        self,
        batch: dict[str, torch.Tensor],
        sampled: dict[str, torch.Tensor],
        true_value: torch.Tensor,
        true_actions: torch.Tensor,
        metrics: dict[str, float],
        path: Path,
    ) -> None:
        """Draws the last frame of each column, and the actions, of the first six episodes."""
        from matplotlib.figure import Figure

        frames = self.trainer.model.config.chunk_latent_frames

        now, future = batch["latents"][:, :, :1], batch["latents"][:, :, : 1 + frames]
        rgb = {"now": now, "future": future, "imagined": torch.cat([now, sampled["rgb"]], dim=2)}
        maps = {"value map": true_value, "predicted map": sampled["value"]}
        columns = {
            title: self.processor.pixels_to_canvas(decode(latents[:6]))[:, -1]
            for decode, kind in ((self.codec.decode, rgb), (self.codec.decode_value_maps, maps))
            for title, latents in kind.items()
        }
        count = len(columns["now"])
        figure = Figure(figsize=(15, 2.4 * count))
        axes = figure.subplots(count, 6, squeeze=False)
        for row in range(count):
            for axis, (title, pictures) in zip(axes[row], columns.items()):
                axis.imshow(pictures[row], interpolation="nearest")
                axis.set_axis_off()
                axis.set_title(fill(self.titles[row], 36) if title == "now" else title, fontsize=7)
            axis = axes[row, 5]
            shown = range(6) if self.processor.action_space == "qpos" else (0, 1, 2, 8, 9, 10)
            for index, number in enumerate(number for number in shown if number < true_actions.shape[-1]):
                color = f"C{index}"
                axis.plot(true_actions[row, :, number].cpu(), color=color, linewidth=1)
                axis.plot(sampled["actions"][row, :, number].cpu(), color=color, linestyle="--", linewidth=1)
            axis.set_ylim(-1.5, 1.5)
            names = "joints" if self.processor.action_space == "qpos" else "xyz, left and right"
            axis.set_title(f"{names}\ntrue: line, predicted: dashes", fontsize=7)
        figure.suptitle("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()), fontsize=8)
        figure.tight_layout()
        with written_file(path) as temporary:
            figure.savefig(temporary, dpi=80, format="png")
