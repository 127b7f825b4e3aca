"""Wan2.1-T2V-1.3B is loaded as Wan2.2-TI2V-5B is: its released layout at small width, its full size on `meta`."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from aim_hf import AIMConfig, AIMForWorldAction, AIMPipeline
from aim_hf.commands.encode_latents import main as encode_latents
from aim_hf.commands.train import main as train
from aim_hf.data.latent_windows import LatentWindows
from aim_hf.model.conversion import wan_config
from aim_hf.model.presets import PRESETS
from aim_hf.model.processing_aim import robotwin_processor
from aim_hf.pipeline.codec import VideoCodec

from ..data.fixtures_episodes import write_shard
from ..fixtures_pipeline import make_observation, make_processor, make_tokenizer, randomize
from ..training.test_stage1 import make_episode

WAN = dict(num_attention_heads=2, attention_head_dim=24, ffn_dim=60, text_dim=20, freq_dim=32, num_layers=2)
HEAD = dict(action_hidden_size=36, action_ffn_dim=40, chunk_latent_frames=1, actions_per_latent_frame=8)
# Later than the release: its files don't have these, and diffusers takes its defaults.
ABSENT_IN_VAE = ("decoder_base_dim", "is_residual", "in_channels", "out_channels", "patch_size")
ABSENT_IN_VAE += ("scale_factor_temporal", "scale_factor_spatial")


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """A folder in the layout of Wan-AI/Wan2.1-T2V-1.3B-Diffusers."""
    torch.manual_seed(0)
    text = UMT5Config(vocab_size=20, d_model=20, d_kv=8, d_ff=24, num_layers=1, num_heads=2, tie_word_embeddings=False)
    transformer = WanTransformer3DModel(**WAN, in_channels=16, out_channels=16, patch_size=(1, 2, 2))
    folder = tmp_path_factory.mktemp("wan21")
    WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=UMT5EncoderModel(text),
        vae=randomize(AutoencoderKLWan(base_dim=8, num_res_blocks=1), seed=0, std=0.02),
        scheduler=UniPCMultistepScheduler(flow_shift=3.0),
        transformer=randomize(transformer, seed=1),
    ).save_pretrained(folder)
    config = json.loads((folder / "vae" / "config.json").read_text())
    released = {name: value for name, value in config.items() if name not in ABSENT_IN_VAE}
    (folder / "vae" / "config.json").write_text(json.dumps(released))
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("encoder.embed_tokens.weight", None)  # the release has `shared.weight` alone
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def base(wan, tmp_path_factory):
    pipe = AIMPipeline.from_wan(wan, processor=make_processor(), **HEAD)
    folder = tmp_path_factory.mktemp("base")
    pipe.save_pretrained(folder)
    return folder


def test_the_codec_is_wans_own_vae(wan):
    """16 channels, 4 x 8 x 8, and the statistics of the release."""
    vae = AutoencoderKLWan.from_pretrained(wan / "vae")
    codec = VideoCodec(vae)
    assert (codec.temporal_factor, codec.spatial_factor) == (4, 8)
    pixels = torch.rand(1, 3, 9, 48, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = codec.encoder_state()
    latents = torch.cat([codec.encode(pixels[:, :, :1], state), codec.encode(pixels[:, :, 1:], state)], dim=2)
    assert latents.shape == (1, 16, 3, 6, 4)
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        theirs = vae.encode(pixels).latent_dist.mode()
        decoded = vae.decode(latents * std + mean).sample
    torch.testing.assert_close(latents * std + mean, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(latents), decoded, rtol=0, atol=1e-5)


def test_every_tensor_is_taken(wan):
    model, report = AIMForWorldAction.from_wan(wan, **HEAD, output_loading_info=True)
    theirs = WanTransformer3DModel.from_pretrained(wan / "transformer").state_dict()
    assert set(report.taken) == set(theirs) and not report.left_over
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in theirs.items())


def test_a_chunk(base):
    """Imagined pictures of each camera's size, value maps, and finite actions."""
    pipe = AIMPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    embeddings = pipe.text_encoder
    assert torch.equal(embeddings.encoder.embed_tokens.weight, embeddings.shared.weight)
    assert embeddings.shared.weight.std() > 0
    assert pipe.latent_size == (6, 4) and pipe.frames_per_chunk == 4
    out = pipe(make_observation(np.random.default_rng(0)), session=pipe.start("ring the bell"))
    assert out.frames["head_camera"].shape == (1, 4, 32, 32, 3)
    assert out.value_maps["left_camera"].shape == (1, 4, 16, 16)
    assert out.actions.shape == (1, 8, 16) and np.isfinite(out.actions).all()


@pytest.fixture(scope="module")
def latents(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    write_shard(folder / "episodes", [make_episode(seed) for seed in range(2)], index=0)
    options = ["--dataset", folder / "episodes", "--policy", base, "--output_dir", folder / "latents"]
    encode_latents(list(map(str, options)))
    return folder / "latents"


@pytest.mark.parametrize("options", [[], ["--lora_rank", "2"]], ids=["full", "lora"])
def test_a_training_step_from_episodes(base, latents, tmp_path, options):
    model = AIMForWorldAction.from_pretrained(base / "model")
    item = LatentWindows(latents, model.config, window_chunks=2)[0]
    assert item["latents"].shape == (16, 3, 6, 4) and item["prompt_embeds"].shape[-1] == 20
    options = ["--latents", latents, "--policy", base, "--output_dir", tmp_path / "run", *options]
    options += ["--max_steps", 1, "--held_out", 1, "--sample_steps", 0, "--learning_rate", 1e-3, "--warmup_steps", 0]
    options += ["--ema_decay", 0, "--use_cpu", "--report_to", "none"]
    train(list(map(str, options)))
    trained = AIMPipeline.from_pretrained(tmp_path / "run" / "pipeline").model
    for name in ("blocks.0.attn1.to_q.weight", "blocks.0.action.attn1.to_q.weight", "action_head.proj_out.weight"):
        assert (trained.get_parameter(name) - model.get_parameter(name)).abs().max() > 0, name


# preset: sizes of the transformer, its parameters, and those of the action head
FULL_SIZE = {
    "wan2.1-t2v-1.3b": (dict(num_attention_heads=12, in_channels=16, ffn_dim=8960), 1418996800, 0.45e9),
    "wan2.2-ti2v-5b": (dict(num_attention_heads=24, in_channels=48, ffn_dim=14336), 4999787712, 0.63e9),
}


@pytest.mark.parametrize("preset", FULL_SIZE)
def test_a_preset_holds_all_of_its_wan(preset, tmp_path):
    """Under Wan's own names, none missing, none besides; 5.68 GB of the release of Wan2.1 in float32."""
    sizes, parameters, head = FULL_SIZE[preset]
    with torch.device("meta"):
        ours = AIMForWorldAction(AIMConfig(**PRESETS[preset]))
        wan = WanTransformer3DModel(**sizes, out_channels=sizes["in_channels"], num_layers=30)
    theirs = {name: parameter.shape for name, parameter in wan.named_parameters()}
    assert sum(shape.numel() for shape in theirs.values()) == parameters
    acting = {n for n, _ in ours.named_parameters() if n.startswith("action_head.") or ".action." in n}
    video = {name: p.shape for name, p in ours.named_parameters() if name not in acting}
    assert video.pop("value_noise_token.weight") == (1, ours.config.hidden_size)
    assert video == theirs
    assert sum(p.numel() for n, p in ours.named_parameters() if n in acting) == pytest.approx(head, rel=0.02)

    wan.save_config(tmp_path)
    assert wan_config(tmp_path).to_dict() == ours.config.to_dict()


def test_the_released_vaes_have_their_published_sizes():
    """Wan2.1_VAE.pth has 508 MB, in float32, which is the size of diffusers' default."""
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    assert 4 * sum(p.numel() for p in vae.parameters()) == pytest.approx(508e6, rel=1e-3)
    assert len(vae.config.latents_mean) == len(vae.config.latents_std) == vae.config.z_dim == 16


def test_a_smaller_canvas_has_as_many_tokens(wan):
    """A pipeline of another canvas: 192 x 160 pixels make 12 x 10 tokens of 2 x 2 cells of 8 x 8 pixels."""
    processor = robotwin_processor(make_tokenizer(), canvas_size=(192, 160))
    pipe = AIMPipeline.from_wan(wan, processor=processor, **HEAD)
    assert pipe.latent_size == (24, 20)
    with pytest.raises(ValueError, match=r"canvas_size is \[192, 168\]; it must be divisible by \[16, 16\]"):
        AIMPipeline.from_wan(wan, processor=robotwin_processor(make_tokenizer(), canvas_size=(192, 168)), **HEAD)
