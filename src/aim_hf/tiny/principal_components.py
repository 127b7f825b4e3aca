"""Sets the encoder of a small `AutoencoderKLWan` to principal components of the training pictures.

A small VAE trained from nothing spends most of its time finding a projection of patches that linear algebra gives in
seconds. Here each downsampling layer of the encoder becomes a projection to principal components, stage by stage: four
neighboring cells in space, then two moments in time, twice. What the encoder can't do linearly is made linear enough:
residual branches start at zero, and a constant offset far above the signal carries it through the last normalization
and SiLU (x / |x| around a large constant is linear, and so is SiLU far right of zero).

Two moments in time are kept as mean and half difference. The difference of a still picture is zero, so a clip's first
frame, which Wan's VAE passes around the temporal layers, has the latents of a clip that stands still.

An offset on each channel leaves bfloat16 no digits for the signal. `condition_encoder` turns the last features, so
that one channel carries the offset and all others their signal alone, which nothing but rounding can tell.
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
    _check_shape(config)
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


@torch.no_grad()
def condition_encoder(vae: AutoencoderKLWan) -> None:
    """Re-parametrizes an encoder of `set_principal_component_encoder` so that bfloat16 acts: the same latents, with
    activations and biases of their own size, and normalized already (`latents_mean` 0, `latents_std` 1).

    1. Pixels are centered first, so that no bias has to.
    2. The offset points along (1, 1 ... 1). A reflection turns that direction to the last channel: the norm, and so
       what the normalization makes of the others, stay the same.
    3. The others come out near 0, where SiLU is x / 2 + x^2 / 4. Their gain gives it the slope and the curvature that
       SiLU had around the offset.

    What lies along the offset is lost, as it was but for terms of second order: a latent that holds nothing else (the
    last one, where there are as many latents as channels) becomes its mean, 0.

    Raises:
        ValueError: for an encoder that wasn't made so, or is conditioned already.
    """
    config, encoder = vae.config, vae.encoder
    _check_shape(config)
    gain = encoder.norm_out.gamma.flatten().double()
    if any(parameter.any() for parameter in encoder.mid_block.parameters()) or (gain != SILU_CENTER).any():
        raise ValueError("the encoder is not one of principal components, or has been conditioned already.")
    dim, pixels, (first, last) = len(gain), config.in_channels, encoder.down_blocks
    space, time = last.resample[1], last.time_conv

    # 1. The mean pixel, as far as the first components know it.
    cells = first.resample[1].weight[:, :pixels, :2, :2].double()
    bias = first.resample[1].bias.double()
    mean = -(torch.linalg.pinv(cells.flatten(1)) @ bias).view(pixels, 4).mean(dim=1)
    encoder.conv_in.bias[:pixels] -= mean.to(encoder.conv_in.bias)
    first.resample[1].bias.copy_(bias + cells.sum(dim=(2, 3)) @ mean)

    # 2. The reflection, of what the last spatial layer gives and what the temporal one makes of it. The first channels
    #    hold means of two moments, and can be told from all but the carrier.
    axis = torch.full((dim,), dim**-0.5, dtype=torch.float64)
    axis[-1] -= 1
    turn = torch.eye(dim, dtype=torch.float64) - 2 * torch.outer(axis, axis) / axis.dot(axis)
    means = dim * 3 // 4
    back = torch.zeros(dim, dim, dtype=torch.float64)
    back[:means, :-1] = torch.linalg.pinv(turn[:-1, :means])
    carrier = space.bias[-1].item() * dim**0.5  # is made 1, for the normalization doesn't care
    space.weight.copy_(torch.einsum("po,oc...->pc...", turn, space.weight.double()) / carrier)
    space.bias.copy_(turn @ space.bias.double() / carrier)
    time.weight[..., 0, 0] = torch.einsum("po,oct,cq->pqt", turn, time.weight[..., 0, 0].double(), back).float()
    time.bias.zero_()
    time.bias[-1] = 1

    # 3. SiLU's value, slope and curvature at the offset, and from 0 on.
    center = gain[0]
    sigmoid = torch.sigmoid(center)
    value, slope = center * sigmoid, sigmoid * (1 + center * (1 - sigmoid))
    curvature = sigmoid * (1 - sigmoid) * (2 + center * (1 - 2 * sigmoid))
    new_gain = center * curvature / slope
    encoder.norm_out.gamma.fill_(new_gain)
    weight = encoder.conv_out.weight[: config.z_dim, :, -1, 1, 1].double()
    latents_mean, latents_std = (
        torch.tensor(config[name], dtype=torch.float64) for name in ("latents_mean", "latents_std")
    )
    at_offset = encoder.conv_out.bias[: config.z_dim].double() + weight.sum(dim=1) * value
    turned = weight @ turn
    along_offset = turned[:, -1].abs() > 0.5 * weight.norm(dim=1)
    turned[:, -1] = 0
    weight, bias = (
        turned * center * slope * 2 / new_gain / latents_std[:, None],
        (at_offset - latents_mean) / latents_std,
    )
    weight[along_offset], bias[along_offset] = 0, 0
    encoder.conv_out.weight[: config.z_dim, :, -1, 1, 1] = weight.float()
    encoder.conv_out.bias[: config.z_dim] = bias.float()

    # The decoder is given what it was before.
    into = vae.post_quant_conv
    into.bias += (into.weight[..., 0, 0, 0].double() @ latents_mean).float()
    into.weight *= latents_std.float().view(1, -1, 1, 1, 1)
    vae.register_to_config(latents_mean=[0.0] * config.z_dim, latents_std=[1.0] * config.z_dim)


def _check_shape(config) -> None:
    if config.is_residual or config.num_res_blocks or set(config.dim_mult) != {1} or len(config.dim_mult) != 3:
        raise ValueError(
            f"the VAE has is_residual={config.is_residual}, num_res_blocks={config.num_res_blocks}, dim_mult="
            f"{config.dim_mult}; principal components need False, 0 and [1, 1, 1]."
        )


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
