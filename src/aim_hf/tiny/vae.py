"""Makes the tiny VAE: diffusers' `AutoencoderKLWan` at a width that two CPU cores can train from nothing.

Notable choices:
- The encoder is computed, not trained: principal components of the data (`principal_components.py`). Only the decoder
  learns, so latents are fixed from the start and the world-action model can train beside it.
- RGB and value maps share one VAE (eq. 2), so every batch holds both. A value clip starts with a black frame, as each
  chunk's does when the robot acts.
- Most of a canvas is table. A loss that counts all pixels alike learns the table and forgets the bell, so a pixel
  counts more the further it is from the background: the median canvas for RGB, black for value maps.
- The decoder first learns single pictures and then clips, as Wan's did: its temporal kernels start as "stand still",
  and a batch of pictures shows more than a clip of as many frames.
- Muon trains the convolutions, AdamW the rest.
- Whatever is random in step i follows from (seed, i, process) alone, so a resumed run is the uninterrupted one.

Left out: the adversarial and perceptual losses of large VAEs, which serve texture; a small robot world has little.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d, WanResidualBlock
from PIL import Image
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from ..data.episodes import Episode
from ..data.latents import encoder_fingerprint
from ..model.processing_aim import AIMProcessor
from ..pipeline.codec import BLACK, VideoCodec
from ..training.muon import MuonWithAdamW
from ..utils.files import claim, read_json, reading, written_folder
from .principal_components import condition_encoder, set_principal_component_encoder
from .vae_arguments import VAETrainingArguments

RGB_CHUNKS = {1: 0.5, 2: 0.35, 4: 0.15}  # latent frames of an RGB clip after its first: how often
MAY_CHANGE = ("steps", "report_steps", "save_steps")  # of a run that goes on
STATISTICS_CLIPS = 200  # of each kind, for principal components and latents' statistics


def tiny_vae(z_dim: int = 96, base_dim: int = 96, decoder_base_dim: int = 32) -> AutoencoderKLWan:
    """A VAE of Wan2.2's compression, 4 x 16 x 16, whose encoder can hold principal components.

    The decoder starts as a shallow network of pictures: residual branches and attention begin at zero, spatial kernels
    are orthogonal, and temporal kernels repeat the moment that they are given.
    """
    vae = AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim,
        z_dim=z_dim,
        dim_mult=[1, 1, 1],
        num_res_blocks=0,
        temperal_downsample=[True, True],
        is_residual=False,
        patch_size=4,
        in_channels=48,  # 3 colors x 4 x 4 pixels
        out_channels=48,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
    )
    with torch.no_grad():
        for module in vae.decoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.orthogonal_(module.weight)
                torch.nn.init.zeros_(module.bias)
            elif isinstance(module, WanCausalConv3d):
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)
                present = module.weight[:, :, -1]  # the kernel's other moments see the past
                if module.kernel_size == (3, 1, 1):  # makes two moments of one
                    present.copy_(torch.eye(module.in_channels).repeat(2, 1)[..., None, None])
                else:
                    present.copy_(torch.nn.init.orthogonal_(torch.empty(present.shape)))
        for module in vae.decoder.modules():
            if isinstance(module, WanResidualBlock):
                torch.nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, WanAttentionBlock):
                torch.nn.init.zeros_(module.proj.weight)
    return vae


@dataclass(frozen=True)
class CanvasEpisode:
    """An episode as the VAE sees it: `rgb` (T, height, width, 3) and `value` (T, height, width), uint8."""

    rgb: np.ndarray
    value: np.ndarray


def canvas_episodes(rows: Iterable[dict], processor: AIMProcessor) -> list[CanvasEpisode]:
    """Decodes rows of an episode dataset into memory, at 4 bytes a pixel and frame."""
    episodes = []
    for row in tqdm(rows, desc="decode", unit="episode"):
        episode = Episode.from_row(row)
        rgb, value = episode.canvases(processor, np.arange(episode.num_frames))
        episodes.append(CanvasEpisode(rgb, value[..., 0]))
    return episodes


def median_canvas(episodes: Sequence[CanvasEpisode], frames: int = 500) -> torch.Tensor:
    """The background: per-pixel median over about `frames` frames of all episodes, (3, height, width) in [-1, 1]."""
    every = max(1, len(episodes) * 32 // frames)
    sample = np.concatenate([episode.rgb[i % every :: every] for i, episode in enumerate(episodes)])
    return torch.from_numpy(np.median(sample, axis=0)).permute(2, 0, 1).float() / 127.5 - 1


def sample_clips(
    episodes: Sequence[CanvasEpisode], rng: np.random.Generator, count: int, latent_frames: int, stride: int, kind: str
) -> torch.Tensor:
    """Random clips of 1 + 4 * latent_frames frames, (count, 3, frames, height, width) in [-1, 1].

    An episode that ends within a clip stands still.

    Args:
        kind: "rgb", or "value": then the first frame is black, unless it is the only one.
    """
    clips = []
    for index in rng.integers(len(episodes), size=count):
        last = len(episodes[index].rgb) - 1
        start = rng.integers(max(1, last + 1 - min(4, 4 * latent_frames) * stride))
        frames = np.minimum(start + stride * np.arange(1 + 4 * latent_frames), last)
        if kind == "rgb":
            clip = episodes[index].rgb[frames]
        else:
            clip = np.repeat(episodes[index].value[frames][..., None], 3, axis=-1)
            if latent_frames:
                clip[0] = 0
        clips.append(clip)
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


class DecoderLoss(torch.nn.Module):
    """Reconstruction error of a batch; a module, so that `accelerate` can wrap the decoder's training forward.

    Args:
        background: (3, height, width), the RGB median canvas.
    """

    def __init__(self, vae: AutoencoderKLWan, background: torch.Tensor, foreground_weight: float):
        super().__init__()
        self.vae, self.foreground_weight = vae, foreground_weight
        self.register_buffer("rgb_background", background[None, :, None])
        self.register_buffer("value_background", torch.full((1, 3, 1, 1, 1), BLACK))

    def pixel_weights(self, clips: torch.Tensor, kind: str) -> torch.Tensor:
        """(B, 1, T, height, width): 1 on the background, 1 + foreground_weight from a quarter of the range on."""
        background = self.rgb_background if kind == "rgb" else self.value_background
        distance = (clips - background).abs().amax(dim=1, keepdim=True)
        return 1 + self.foreground_weight * (2 * distance).clamp(max=1)

    def forward(
        self, batch: dict[str, torch.Tensor], latent_noise: float, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """batch: kind -> clips (B, 3, T, height, width). Returns each kind's weighted error."""
        terms = {}
        scale = torch.tensor(self.vae.config.latents_std, device=self.rgb_background.device).view(1, -1, 1, 1, 1)
        for kind, clips in batch.items():
            with torch.no_grad():
                latents = self.vae.encode(clips).latent_dist.mode()
                noise = torch.randn(latents.shape, generator=generator, device=latents.device)
            difference = self.vae.decode(latents + latent_noise * scale * noise).sample - clips
            # The absolute error keeps edges sharp; the square finds what is missing altogether.
            error = difference.abs() + 2 * difference.square()
            weights = self.pixel_weights(clips, kind)
            terms[kind] = (error * weights).sum() / (3 * weights.sum())
        return terms


@torch.no_grad()
def evaluate_vae(
    loss: DecoderLoss, clips: dict[str, torch.Tensor]
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Reconstructs clips from the posterior's mode.

    Returns:
        metrics: `rgb_psnr`, `value_psnr` (dB, mean over clips), `rgb_foreground_psnr` and `value_foreground_psnr`
            (over pixels that are an eighth of the range or more away from the background), `peak_error`: pixels from
            the reconstructed map's brightest pixel to the nearest one that is within 5 % of the true map's peak (a
            map's top may be flat), the mean over frames whose map is bright somewhere, and `largest_peak_error`.
        reconstructions: like `clips`.
    """
    metrics, reconstructions = {}, {}
    for kind, clip in clips.items():
        reconstruction = torch.cat([loss.vae(piece).sample for piece in clip.split(4)])
        error = ((reconstruction - clip) / 2).square()
        foreground = (loss.pixel_weights(clip, kind) > 1 + loss.foreground_weight / 2).expand_as(error)
        metrics[f"{kind}_psnr"] = -10 * error.flatten(1).mean(dim=1).log10().mean().item()
        metrics[f"{kind}_foreground_psnr"] = -10 * error[foreground].mean().log10().item()
        reconstructions[kind] = reconstruction
    errors = peak_errors(clips["value"], reconstructions["value"])
    return metrics | {"peak_error": errors.mean().item(), "largest_peak_error": errors.max().item()}, reconstructions


def peak_errors(true: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    """Per frame with a bright spot: distance in pixels, as `evaluate_vae` says. Arguments (B, 3, T, height, width)."""
    true, reconstructed = (x.mean(dim=1).flatten(0, 1) for x in (true, reconstructed))
    width = true.shape[-1]
    errors = []
    for map_, guess in zip(true, reconstructed):
        if map_.max() > 0:
            top = (map_ >= map_.max() - 0.05 * (map_.max() + 1)).nonzero().float()
            peak = torch.tensor(divmod(int(guess.argmax()), width), dtype=torch.float32, device=top.device)
            errors.append((top - peak).norm(dim=1).min())
    return torch.stack(errors) if errors else torch.zeros(1)


@torch.no_grad()
def set_encoder(vae: AutoencoderKLWan, episodes: Sequence[CanvasEpisode], stride: int, seed: int = 0) -> None:
    """Sets the encoder to principal components, which come out normalized: `latents_mean` of the VAE's config is 0,
    and `latents_std` 1.

    Statistics count as many RGB as value latents, those that the model will see: the black frame's latent is left out.
    The scale is the square root of each channel's standard deviation (times that of the mean one). Full whitening
    would give the faint details of the last components as much weight as where things are.
    """
    rng = np.random.default_rng(seed)
    count = STATISTICS_CLIPS
    clips = {kind: sample_clips(episodes, rng, count, 1, stride, kind) for kind in ("rgb", "value")}
    set_principal_component_encoder(vae, torch.cat(list(clips.values())))
    rgb, value = (vae.encode(clips[kind]).latent_dist.mode() for kind in clips)
    latents = torch.cat([part.transpose(0, 1).flatten(1) for part in (rgb[:, :, 1:], value[:, :, 1:])], dim=1)
    deviation = latents.std(dim=1)
    vae.register_to_config(
        latents_mean=latents.mean(dim=1).tolist(), latents_std=(deviation * deviation.mean()).sqrt().tolist()
    )
    condition_encoder(vae)
    vae.post_quant_conv.weight.copy_(torch.eye(vae.config.z_dim)[..., None, None, None])
    vae.post_quant_conv.bias.zero_()


class VAETrainer:
    """Trains the decoder of `vae` on `episodes` and leaves a run in `folder`: `checkpoint/`, `samples/step-N.png`,
    `log.jsonl`. The encoder stays as it is.

    Args:
        held_out: episodes that reports look at and training doesn't; without any, they look at those of training.

    Raises:
        FileExistsError: if the folder holds a run on other episodes, of another encoder or with other arguments.
        UnreadableFile: if its checkpoint is damaged.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        episodes: Sequence[CanvasEpisode],
        held_out: Sequence[CanvasEpisode],
        args: VAETrainingArguments,
        folder: Path,
    ):
        # Single pictures leave temporal kernels without a gradient.
        self.accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        self.episodes, self.args, self.folder, self.step = episodes, args, Path(folder), 0
        settings = {name: value for name, value in asdict(args).items() if name not in MAY_CHANGE}
        settings |= {"encoder": encoder_fingerprint(VideoCodec(vae)), "episodes": _digest([*episodes, *held_out])}
        with self.accelerator.main_process_first():
            claim(self.folder, settings | {"held_out": len(held_out)}, outputs="checkpoint")
        self.loss = DecoderLoss(vae, median_canvas(episodes), args.foreground_weight)
        trained = [p for p in vae.parameters() if p.requires_grad]
        kernels = [p for p in trained if p.ndim >= 4 and p.shape[0] > 1 and p[0].numel() > 1]
        rest = {id(p) for p in kernels}
        others = [p for p in trained if id(p) not in rest]
        self.optimizer = MuonWithAdamW(kernels, others, lr=args.learning_rate, adam_lr=args.adam_learning_rate)
        if (self.folder / "checkpoint").is_dir():
            self._load()
        self.loss = self.accelerator.prepare(self.loss)
        rng, held_out = np.random.default_rng(args.seed), held_out or episodes
        self.held_out = {
            "rgb": sample_clips(held_out, rng, 12, 3, args.frame_stride, "rgb").to(self.accelerator.device),
            "value": sample_clips(held_out, rng, 24, 1, args.frame_stride, "value").to(self.accelerator.device),
        }

    @property
    def vae(self) -> AutoencoderKLWan:
        return self.accelerator.unwrap_model(self.loss).vae

    def train(self) -> dict[str, float]:
        """Trains to the last step; returns the last report."""
        main, metrics = self.accelerator.is_main_process, {}
        with tqdm(total=self.args.steps, initial=self.step, desc="vae", unit="step", disable=not main) as progress:
            while self.step < self.args.steps:
                terms = self._train_step()
                self.step += 1
                last = self.step == self.args.steps
                progress.update()
                if main and (self.step % self.args.report_steps == 0 or last):
                    metrics = self._report(terms)
                    progress.set_postfix({name: f"{metrics[name]:.2f}" for name in ("rgb_psnr", "peak_error")})
                if main and (self.step % self.args.save_steps == 0 or last):
                    self._save()
        return metrics

    def _train_step(self) -> dict[str, torch.Tensor]:
        args, device = self.args, self.accelerator.device
        shared = np.random.default_rng([args.seed, self.step])  # the same in all processes: equal work for each
        rng = np.random.default_rng([args.seed, self.step, self.accelerator.process_index])
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        if self.step < args.picture_share * args.steps:
            count, latent_frames = args.picture_batch_size, {"rgb": 0, "value": 0}
        else:
            chunks = int(shared.choice(list(RGB_CHUNKS), p=list(RGB_CHUNKS.values())))
            count, latent_frames = args.clip_batch_size, {"rgb": chunks, "value": 1}
        batch = {}
        for kind, length in latent_frames.items():
            clips = sample_clips(self.episodes, rng, count // 2, length, args.frame_stride, kind)
            batch[kind] = clips.to(device)
        self._set_learning_rates()
        terms = self.loss(batch, args.latent_noise, generator)
        total = terms["rgb"] + terms["value"]
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss is {total.item()} at step {self.step}; lower learning_rate.")
        self.accelerator.backward(total)
        self.accelerator.clip_grad_norm_([p for p in self.loss.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms

    def _set_learning_rates(self):
        warmup = min(1, (self.step + 1) / self.args.warmup_steps)
        factor = warmup * (0.03 + 0.97 * (1 + math.cos(math.pi * self.step / self.args.steps)) / 2)
        rates = (self.args.learning_rate, self.args.adam_learning_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = factor * rate

    def _report(self, terms: dict[str, torch.Tensor]) -> dict[str, float]:
        metrics, reconstructions = evaluate_vae(self.accelerator.unwrap_model(self.loss), self.held_out)
        entry = {"step": self.step, **{f"{name}_loss": term.item() for name, term in terms.items()}, **metrics}
        picture = self.folder / "samples" / f"step-{self.step:06d}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_reconstructions(self.held_out, reconstructions).save(picture)
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps({name: round(value, 5) for name, value in entry.items()}) + "\n")
        return metrics

    def _save(self):
        with written_folder(self.folder / "checkpoint") as folder:
            self.vae.save_pretrained(folder)
            save_file(_tensors(self.optimizer), folder / "optimizer.safetensors")
            (folder / "training.json").write_text(json.dumps({"step": self.step, **asdict(self.args)}, indent=1))

    def _load(self):
        folder = self.folder / "checkpoint"
        mend = f"delete {folder}, and training begins anew"
        self.step = read_json(folder / "training.json", mend)["step"]
        weights, optimizer = (folder / f"{name}.safetensors" for name in ("diffusion_pytorch_model", "optimizer"))
        with reading(weights, mend):
            self.loss.vae.load_state_dict(load_file(weights))
        with reading(optimizer, mend):
            _restore(self.optimizer, load_file(optimizer))


def _digest(episodes: Sequence[CanvasEpisode]) -> str:
    digest = hashlib.sha256()
    for episode in episodes:
        for pictures in (episode.rgb, episode.value):
            digest.update(np.ascontiguousarray(pictures))
    return digest.hexdigest()


def draw_reconstructions(clips: dict[str, torch.Tensor], reconstructions: dict[str, torch.Tensor], scale: int = 2):
    """Rows of frames: true clips over their reconstructions; RGB on the left, value maps on the right."""

    def strip(clip: torch.Tensor) -> np.ndarray:
        frames = ((clip[:, [0, 1, 2, 4]] + 1) * 127.5).round().byte().cpu().numpy()
        return frames.transpose(2, 1, 3, 0).reshape(clip.shape[2], -1, 3)

    sides = [
        np.concatenate([strip(x) for pair in list(zip(clips[kind], reconstructions[kind]))[:4] for x in pair])
        for kind in clips
    ]
    picture = Image.fromarray(np.concatenate(sides, axis=1))
    return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)


def _tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]):
    description = optimizer.state_dict()
    for key, tensor in tensors.items():
        index, name = key.split(".")
        description["state"].setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(description)
