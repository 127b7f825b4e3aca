"""Cost of each stage of a chunk: time, operations, and share of the device's measured matrix-product rate.

    python benchmarks/latency.py --preset tiny [--width 4] --output_file benchmarks/results/latency/tiny.json
    python benchmarks/latency.py --preset wan2.2-ti2v-5b --layers 2 --no-codec     # full-width layers on a CPU

- `stages`: seconds, TFLOP and share of the measured rate of: the text encoder and the text's keys and values (once an
  episode), encoding of the observed frames, their append, a step of RGB and value maps, the clean pass, an action
  step, decoding of frames and of value maps.
- `chunk`: append, 5 world steps, clean pass, 10 action steps, in one run; `over_counted` is its time over what its
  operations need at the measured rate.
- `action_step_over_video_step`.
- `backbone_action_loop_over_ours`: 10 action steps through the video backbone, as LingBot-VA does, over ours.
- `lingbot_settings_over_ours`: a chunk at LingBot-VA's published settings (25 + 1 video steps with guidance, 50 + 1
  action steps through the backbone, guidance rows in both, the instruction's keys and values in each step; no value
  maps there) over ours (5 + 1, 10, no guidance). Both without the append.
- `*_counted`: the same ratios by operations, of the whole preset, all layers included.
"""

import argparse

import torch
from alternatives import BackboneRollout
from common import (
    ACTION_STEPS,
    CANVAS,
    TERA,
    TEXT_TOKENS,
    WORLD_STEPS,
    Rollout,
    counted,
    finish,
    in_turn,
    make_model,
    parser,
    synchronize,
)
from diffusers import AutoencoderKLWan
from transformers import UMT5Config, UMT5EncoderModel

from aim_hf.pipeline.codec import VideoCodec
from aim_hf.tiny.text_encoder import tiny_text_encoder
from aim_hf.tiny.vae import tiny_vae

LINGBOT_VIDEO_STEPS, LINGBOT_ACTION_STEPS = 25, 50


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--history", type=int, default=4, help="chunks of history")
    arguments.add_argument(
        "--codec", action=argparse.BooleanOptionalAction, default=True, help="VAE and text encoder too"
    )
    arguments.add_argument("--compile", nargs="?", const="default", help="torch.compile the layers, in a mode of it")
    args = arguments.parse_args()

    model = make_model(args, history_chunks=args.history)
    if args.compile:
        model.compile_blocks(mode=args.compile)
    rollout, backbone = Rollout(model, args, args.history), BackboneRollout(model, args, args.history)
    doubled = argparse.Namespace(**vars(args) | {"batch_size": 2 * args.batch_size})
    lingbot = BackboneRollout(model, doubled, args.history)

    stages = world_stages(rollout) | (codec_stages(rollout, args) if args.codec else {})
    rate = matmul_rate(model)
    times = in_turn(stages, args.rounds, args.device)
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    compared = in_turn(
        {
            "chunk": lambda: (rollout.append(), rollout.sample()),
            "ours": rollout.sample,
            "lingbot": lambda: lingbot.chunk(LINGBOT_VIDEO_STEPS, LINGBOT_ACTION_STEPS),
        },
        args.rounds,
        args.device,
    ) | in_turn(
        {
            "action loop": lambda: repeat(stages["action step"], ACTION_STEPS),
            "backbone action loop": backbone_action_loop(backbone),
        },
        5 * args.rounds,  # short, so that one round says little
        args.device,
    )
    operations = {name: counted(run) for name, run in stages.items()}
    whole = counted(lambda: (rollout.append(), rollout.sample()))
    numbers = {
        "stages": {
            name: {
                "seconds": times[name],
                "tflop": operations[name],
                "share_of_matmul_rate": operations[name] / times[name] / rate,
            }
            for name in stages
        },
        "matmul_tflop_per_second": rate,
        "chunk": {"seconds": compared["chunk"], "tflop": whole, "over_counted": compared["chunk"] * rate / whole},
        "seconds_compared": compared,
        "action_step_over_video_step": times["action step"] / times["world step"],
        "backbone_action_loop_over_ours": compared["backbone action loop"] / compared["action loop"],
        "lingbot_settings_over_ours": compared["lingbot"] / compared["ours"],
    }
    numbers |= counted_ratios(args)
    if args.device != "cpu":
        numbers["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    finish(numbers, args)


@torch.no_grad()
def world_stages(rollout: Rollout) -> dict:
    model, cache, config = rollout.model, rollout.cache, rollout.model.config
    rgb, value, actions = (tensor.to(model.dtype) for tensor in rollout.noise())
    time = torch.full((rollout.rows,), 0.5, device=model.device)
    everything = torch.arange(rollout.rows)
    world, actions_context = model.world_context(cache), model.action_context(cache, rgb, value)
    stage_cache = cache.select(everything)  # an append must not move the history that the other stages look at

    def append():
        stage_cache.frames = cache.frames
        latents = rollout.latents(config.chunk_latent_frames)
        model.append(stage_cache, latents, rollout.randn(config.actions_per_chunk, config.action_dim))

    stages = {
        "text": lambda: model.set_text(stage_cache, rollout.prompt_embeds),
        "append": append,
        "world step": lambda: model.world_velocity(world, rgb, value, time),
        "clean pass": lambda: model.action_context(cache, rgb, value),
        "action step": lambda: model.action_velocity(actions_context, actions, time),
    }
    return {name: torch.no_grad()(run) for name, run in stages.items()}


def codec_stages(rollout: Rollout, args) -> dict:
    """Encoding and decoding of one chunk in the middle of a video, at the preset's canvas; encoding of a prompt."""
    codec = VideoCodec(make_vae(args).to(args.device, rollout.model.dtype))
    height, width = CANVAS[args.preset]
    frames = 4 * rollout.model.config.chunk_latent_frames
    pixels = torch.rand(args.batch_size, 3, 1 + frames, height, width) * 2 - 1
    encoder, decoder = codec.encoder_state(), codec.decoder_state()
    latents = codec.encode(pixels[:, :, :1], encoder)
    codec.decode(latents, decoder)
    chunk = rollout.latents(rollout.model.config.chunk_latent_frames)
    text_encoder = make_text_encoder(args).to(rollout.model.dtype).eval()
    prompt = torch.ones(args.batch_size, TEXT_TOKENS[args.preset], dtype=torch.long, device=args.device)
    return {
        "encode text": torch.no_grad()(lambda: text_encoder(prompt)),
        "encode": lambda: codec.encode(pixels[:, :, 1:], encoder.fork()),
        "decode frames": lambda: codec.decode(chunk, decoder.fork()),
        "decode value maps": lambda: codec.decode_value_maps(chunk),
    }


def make_vae(args) -> AutoencoderKLWan:
    if args.preset == "tiny":
        return tiny_vae().eval()
    if args.preset == "wan2.1-t2v-1.3b":  # 16 channels, 4 x 8 x 8: diffusers' default
        return AutoencoderKLWan().eval()
    # Wan2.2's: 48 channels, 4 x 16 x 16.
    return AutoencoderKLWan(
        base_dim=160,
        decoder_base_dim=256,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
    ).eval()


def make_text_encoder(args) -> UMT5EncoderModel:
    with torch.device(args.device):
        if args.preset == "tiny":
            return tiny_text_encoder(vocab_size=512)
        # UMT5-XXL, as in Wan2.2.
        sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256384}
        return UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu"))


def backbone_action_loop(rollout: BackboneRollout):
    config = rollout.model.config
    actions = rollout.randn(config.actions_per_chunk, config.action_dim)
    rollout.video_step(rollout.noise()[0].to(rollout.model.dtype))
    return lambda: repeat(lambda: rollout.action_step(actions, rollout.cache.text), ACTION_STEPS)


def repeat(run, times: int) -> None:
    for _ in range(times):
        run()


def matmul_rate(model, size: int | None = None) -> float:
    """TFLOP/s of a large square product in the model's dtype."""
    size = size or (1536 if model.device.type == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=model.device, dtype=model.dtype) for _ in range(2))
    times = in_turn({"product": lambda: a @ b}, 10, str(model.device.type))
    synchronize(model.device.type)
    return 2 * size**3 / TERA / times["product"]


@torch.no_grad()
def counted_ratios(args) -> dict[str, float]:
    """On the meta device, for all of the preset's layers."""
    meta = argparse.Namespace(**vars(args) | {"device": "meta", "dtype": "bfloat16", "layers": None, "batch_size": 1})
    model = make_model(meta, history_chunks=args.history)
    rollout, backbone = Rollout(model, meta, args.history), BackboneRollout(model, meta, args.history)
    lingbot = BackboneRollout(model, argparse.Namespace(**vars(meta) | {"batch_size": 2}), args.history)
    stages = world_stages(rollout)
    world, clean, action = (counted(stages[name]) for name in ("world step", "clean pass", "action step"))
    ours = WORLD_STEPS * world + clean + ACTION_STEPS * action
    theirs = counted(lambda: lingbot.chunk(1, 1)) - counted(lambda: lingbot.chunk(0, 0))
    video = counted(lambda: lingbot.chunk(1, 0)) - counted(lambda: lingbot.chunk(0, 0))
    loop = (LINGBOT_VIDEO_STEPS + 1) * video + (LINGBOT_ACTION_STEPS + 1) * (theirs - video)
    return {
        "action_step_over_video_step_counted": action / world,
        "backbone_action_loop_over_ours_counted": counted(backbone_action_loop(backbone)) / (ACTION_STEPS * action),
        "lingbot_settings_over_ours_counted": loop / ours,
    }


if __name__ == "__main__":
    main()
