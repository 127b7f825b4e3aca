"""Sets the encoder of a small `AutoencoderKLWan` to principal components of the training pictures.

A small VAE trained from nothing spends most of its time finding a projection of patches that linear algebra gives in
seconds. Here each downsampling layer of the encoder becomes a projection to principal components, stage by stage: four
neighboring cells in space, then two moments in time, twice. What the encoder can't do linearly is made linear enough:
residual branches start at zero, and a constant offset far above the signal carries it through the last normalization
and SiLU (x / |x| around a large constant is linear, and so is SiLU far right of zero).

Two moments in time are kept as mean and half difference. The difference of a still picture is zero, so a clip's first
frame, which Wan's VAE passes around the temporal layers, has the latents of a clip that stands still.
"""

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResidualBlock, patchify

OFFSET_STDS = 20.0  # offset of the last features, in their largest standard deviation
SILU_CENTER = 8.0  # where the offset lies on SiLU: its slope is 1.002 there
LOG_VARIANCE = -8.0


@torch.no_grad()
def set_principal_component_encoder(vae: AutoencoderKLWan, pixels: torch.Tensor) -> None:
    """Overwrites the encoder of `vae`, whose latents then are principal components of what it sees.

    Args:
        vae: not residual, with `num_res_blocks=0` in the encoder, `dim_mult` all ones and two temporal downsamplings.
        pixels: (N, 3, 5, H, W) in [-1, 1], clips of the training data.

    Raises:
        ValueError: for a VAE of another shape.
    """
    config, encoder = vae.config, vae.encoder
    if config.is_residual or config.num_res_blocks or set(config.dim_mult) != {1} or len(config.dim_mult) != 3:
        raise ValueError(
            f"the VAE has is_residual={config.is_residual}, num_res_blocks={config.num_res_blocks}, dim_mult="
            f"{config.dim_mult}; principal components need False, 0 and [1, 1, 1]."
        )
    for module in encoder.modules():
        if isinstance(module, WanResidualBlock | WanAttentionBlock):  # nothing but their shortcuts
            for parameter in module.parameters():
                parameter.zero_()
    spatial, temporal = zip(*((layer.resample[1], layer.time_conv) for layer in encoder.down_blocks))
    dim = spatial[0].out_channels
    means = dim * 3 // 4  # channels for the mean of two moments; the rest holds half differences
    frames = patchify(pixels, patch_size=config.patch_size)

    # Pixels to channels.
    encoder.conv_in.weight.zero_()
    encoder.conv_in.bias.zero_()
    for channel in range(frames.shape[1]):
        encoder.conv_in.weight[channel, channel, -1, 1, 1] = 1
    still, moving = encoder.conv_in(frames).split([1, frames.shape[2] - 1], dim=2)

    for level, (space, time) in enumerate(zip(spatial, temporal)):
        # Four neighboring cells to `means` components.
        cells = torch.cat([_cells(still), _cells(moving)])
        mean, components, deviation = _principal_components(cells, means)
        space.weight.zero_()
        space.bias.zero_()
        space.weight[: components.shape[1], :, :2, :2] = components.T.unflatten(1, (-1, 2, 2))
        space.bias[: components.shape[1]] = -mean @ components
        # Two moments to mean and half difference; the third, older tap stays silent.
        time.weight.zero_()
        time.bias.zero_()
        for channel in range(means):
            time.weight[channel, channel, 1:, 0, 0] = 0.5
        for channel in range(dim - means):
            time.weight[means + channel, channel, 1:, 0, 0] = torch.tensor([-0.5, 0.5])
        if level == len(spatial) - 1:
            offset = OFFSET_STDS * deviation
            space.bias += offset
            time.bias[means:] += offset
        still, moving = _apply_space(space, still), _apply_space(space, moving)
        moving = time(torch.cat([still, moving], dim=2))

    # Through the last normalization and SiLU to the latents.
    encoder.norm_out.gamma.fill_(SILU_CENTER)
    hidden = torch.cat([encoder.nonlinearity(encoder.norm_out(part)) for part in (still, moving)], dim=2)
    mean, components, _ = _principal_components(hidden.movedim(1, -1).flatten(0, -2), config.z_dim)
    components = components * (offset / SILU_CENTER)
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    encoder.conv_out.weight[: config.z_dim, :, -1, 1, 1] = components.T
    encoder.conv_out.bias[: config.z_dim] = -mean @ components
    vae.quant_conv.weight.zero_()
    vae.quant_conv.weight[: config.z_dim, : config.z_dim, 0, 0, 0] = torch.eye(config.z_dim)
    vae.quant_conv.bias.zero_()
    vae.quant_conv.bias[config.z_dim :] = LOG_VARIANCE


def _cells(frames: torch.Tensor) -> torch.Tensor:
    """(N, C, T, H, W) -> (samples, C * 2 * 2), each a block of 2 x 2 cells."""
    blocks = frames.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))  # N, C, T, H/2, 2, W/2, 2
    return blocks.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(0, 3)


def _apply_space(conv: torch.nn.Conv2d, frames: torch.Tensor) -> torch.Tensor:
    flat = torch.nn.functional.pad(frames.transpose(1, 2).flatten(0, 1), (0, 1, 0, 1))
    return conv(flat).unflatten(0, (frames.shape[0], -1)).transpose(1, 2)


def _principal_components(samples: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean (D,), the first `count` components (D, count), and the largest standard deviation."""
    samples = samples.double()
    mean = samples.mean(dim=0)
    centered = samples - mean
    variances, directions = torch.linalg.eigh(centered.T @ centered / len(centered))
    components = directions.flip(1)[:, : min(count, directions.shape[1])]
    return mean.float(), components.float(), variances[-1].clamp(min=0).sqrt().item()
