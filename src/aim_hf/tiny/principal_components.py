"""Sets the encoder of a small `AutoencoderKLWan` to principal components of the training pictures.

A small VAE trained from scratch spends most of its time on finding a projection of patches, which linear algebra
computes in seconds. Here each downsampling layer of the encoder becomes a projection to principal components, stage by
stage: four neighboring cells in space, then two frames in time, twice. Nonlinear layers are made approximately linear:
residual branches are zero, and a constant offset far above the signal carries it through the last normalization and
SiLU (x / |x| is linear around a large constant, and so is SiLU far right of zero).

Two frames are encoded as mean and half difference. The difference of a static clip is zero, so a clip's first frame,
which bypasses the temporal layers of Wan's VAE, has the latents of a static clip.

An offset on every channel leaves bfloat16 no digits for the signal. `condition_encoder` reflects the last features, so
that one channel carries the offset and the others only their signal. Except for rounding, the latents are the same.
"""

import torch
from diffusers import AutoencoderKLWan
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

OFFSET_STDS = 20.0  # offset of the last features, in units of their largest standard deviation
SILU_CENTER = 8.0  # SiLU's input at the offset, where its slope is 1.002
LOG_VARIANCE = -8.0


@torch.no_grad()
def set_principal_component_encoder(vae: AutoencoderKLWan, pixels: torch.Tensor) -> None:
    """Overwrites the encoder of `vae`, so that its latents are principal components of its input.

    Args:
        vae: not residual, with `num_res_blocks=0` in the encoder, `dim_mult` all ones and two temporal downsamplings.
        pixels: (N, 3, 5, H, W) in [-1, 1], clips of the training data.

    Raises:
        ValueError: for a VAE of another shape.
    """
    config, encoder = vae.config, vae.encoder
    _check_shape(config)
    for parameter in (*encoder.parameters(), *vae.quant_conv.parameters()):
        parameter.zero_()  # what isn't set below stays zero: of the residual blocks, only their shortcuts remain
    spatial, temporal = zip(*((layer.resample[1], layer.time_conv) for layer in encoder.down_blocks))
    dim = spatial[0].out_channels
    means = dim * 3 // 4  # number of channels for the mean of two frames; the others hold half differences
    frames = patchify(pixels, patch_size=config.patch_size)

    # Pixels to channels.
    for channel in range(frames.shape[1]):
        encoder.conv_in.weight[channel, channel, -1, 1, 1] = 1
    still, moving = encoder.conv_in(frames).split([1, frames.shape[2] - 1], dim=2)

    for level, (space, time) in enumerate(zip(spatial, temporal)):
        # Four neighboring cells to `means` components.
        cells = torch.cat([_cells(still), _cells(moving)])
        mean, components, deviation = _principal_components(cells, means)
        space.weight[: components.shape[1], :, :2, :2] = components.T.unflatten(1, (-1, 2, 2))
        space.bias[: components.shape[1]] = -mean @ components
        # Two frames to mean and half difference; the kernel's third, oldest tap is zero.
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
    encoder.conv_out.weight[: config.z_dim, :, -1, 1, 1] = components.T
    encoder.conv_out.bias[: config.z_dim] = -mean @ components
    vae.quant_conv.weight[: config.z_dim, : config.z_dim, 0, 0, 0] = torch.eye(config.z_dim)
    vae.quant_conv.bias[config.z_dim :] = LOG_VARIANCE


@torch.no_grad()
def condition_encoder(vae: AutoencoderKLWan) -> None:
    """Reparametrizes an encoder of `set_principal_component_encoder` for bfloat16: the same latents, but without large
    biases and activations, and already normalized (`latents_mean` 0, `latents_std` 1).

    1. The mean pixel is subtracted at the input, so that later biases are small.
    2. The offset has the direction (1, 1 ... 1). A reflection maps this direction to the last channel. It preserves
       the norm, and therefore the effect of the normalization on the other channels.
    3. The other channels are near 0, where SiLU is x / 2 + x^2 / 4. A new gain gives SiLU the ratio of slope and
       curvature that it had at the offset.

    The signal's component along the offset is lost; before, only its second-order terms were kept. A latent with no
    other component (the last one, if there are as many latents as channels) becomes its mean, 0.

    Raises:
        ValueError: for an encoder that wasn't made by that function, or is conditioned already.
    """
    config, encoder = vae.config, vae.encoder
    _check_shape(config)
    gain = encoder.norm_out.gamma.flatten().double()
    if any(parameter.any() for parameter in encoder.mid_block.parameters()) or (gain != SILU_CENTER).any():
        raise ValueError("the encoder is not one of principal components, or has been conditioned already.")
    dim, pixels, (first, last) = len(gain), config.in_channels, encoder.down_blocks
    space, time = last.resample[1], last.time_conv

    # 1. Subtract the mean pixel, as far as the first components determine it.
    cells = first.resample[1].weight[:, :pixels, :2, :2].double()
    bias = first.resample[1].bias.double()
    mean = -(torch.linalg.pinv(cells.flatten(1)) @ bias).view(pixels, 4).mean(dim=1)
    encoder.conv_in.bias[:pixels] -= mean.to(encoder.conv_in.bias)
    first.resample[1].bias.copy_(bias + cells.sum(dim=(2, 3)) @ mean)

    # 2. Reflect the outputs of the last spatial layer, and the inputs and outputs of the last temporal layer. The
    #    first channels hold means of two frames, and can be recovered from all channels but the carrier.
    axis = torch.full((dim,), dim**-0.5, dtype=torch.float64)
    axis[-1] -= 1
    reflection = torch.eye(dim, dtype=torch.float64) - 2 * torch.outer(axis, axis) / axis.dot(axis)
    means = dim * 3 // 4
    inverse = torch.zeros(dim, dim, dtype=torch.float64)
    inverse[:means, :-1] = torch.linalg.pinv(reflection[:-1, :means])
    carrier = space.bias[-1].item() * dim**0.5  # scaled to 1, since the normalization is invariant to scale
    space.weight.copy_(torch.einsum("po,oc...->pc...", reflection, space.weight.double()) / carrier)
    space.bias.copy_(reflection @ space.bias.double() / carrier)
    time_weight = time.weight[..., 0, 0].double()
    time.weight[..., 0, 0] = torch.einsum("po,oct,cq->pqt", reflection, time_weight, inverse).float()
    time.bias.zero_()
    time.bias[-1] = 1

    # 3. Replace SiLU around the offset, by its value, slope and curvature, with SiLU around 0.
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
    reflected = weight @ reflection
    along_offset = reflected[:, -1].abs() > 0.5 * weight.norm(dim=1)
    reflected[:, -1] = 0
    weight = reflected * center * slope * 2 / new_gain / latents_std[:, None]
    bias = (at_offset - latents_mean) / latents_std
    weight[along_offset], bias[along_offset] = 0, 0
    encoder.conv_out.weight[: config.z_dim, :, -1, 1, 1] = weight.float()
    encoder.conv_out.bias[: config.z_dim] = bias.float()

    # The decoder gets the same inputs as before.
    decoder_input = vae.post_quant_conv
    decoder_input.bias += (decoder_input.weight[..., 0, 0, 0].double() @ latents_mean).float()
    decoder_input.weight *= latents_std.float().view(1, -1, 1, 1, 1)
    vae.register_to_config(latents_mean=[0.0] * config.z_dim, latents_std=[1.0] * config.z_dim)


def _check_shape(config: FrozenDict) -> None:
    if config.is_residual or config.num_res_blocks or set(config.dim_mult) != {1} or len(config.dim_mult) != 3:
        raise ValueError(
            f"the VAE has is_residual={config.is_residual}, num_res_blocks={config.num_res_blocks}, dim_mult="
            f"{config.dim_mult}; principal components need False, 0 and [1, 1, 1]."
        )


def _cells(frames: torch.Tensor) -> torch.Tensor:
    """Blocks of 2 x 2 cells: (N, C, T, H, W) -> (samples, C * 2 * 2)."""
    blocks = frames.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))  # N, C, T, H/2, 2, W/2, 2
    return blocks.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(0, 3)


def _apply_space(conv: torch.nn.Conv2d, frames: torch.Tensor) -> torch.Tensor:
    """Applies a spatial downsampling layer, with Wan's padding, to each frame of (N, C, T, H, W)."""
    flat = torch.nn.functional.pad(frames.transpose(1, 2).flatten(0, 1), (0, 1, 0, 1))
    return conv(flat).unflatten(0, (frames.shape[0], -1)).transpose(1, 2)


def _principal_components(samples: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean (D,), first `count` components (D, count) and largest standard deviation of `samples`, (N, D)."""
    samples = samples.double()
    mean = samples.mean(dim=0)
    centered = samples - mean
    variances, directions = torch.linalg.eigh(centered.T @ centered / len(centered))
    components = directions.flip(1)[:, : min(count, directions.shape[1])]
    return mean.float(), components.float(), variances[-1].clamp(min=0).sqrt().item()
