"""Weights of video models become AIM's: the same numbers out, every tensor accounted for, none dropped in silence."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from aim_hf import AIMForWorldAction, AIMPipeline
from aim_hf.model.canvas import t_pose_canvas
from aim_hf.model.conversion import resample
from aim_hf.model.presets import PRESETS
from aim_hf.model.visibility import Kind

from ..fixtures_pipeline import HEAD, WRIST, make_observation, make_processor, make_tokenizer, make_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"
WAN = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=3,
    attention_head_dim=24,
    in_channels=6,
    out_channels=6,
    text_dim=20,
    freq_dim=32,
    ffn_dim=80,
    num_layers=3,
    cross_attn_norm=True,
)
FIELDS = dict(action_dim=16, action_hidden_size=36, action_ffn_dim=40, actions_per_latent_frame=4)


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """A Wan transformer with no zero among its weights, and its folder, sharded."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(**WAN).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("wan")
    model.save_pretrained(folder / "transformer", max_shard_size="100KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    return model, folder


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 4, 4), (3, 6, 4), (5, 2, 8)])
@torch.no_grad()
def test_video_stream_is_wans_own(wan, frames, height, width):
    """All frames in one chunk, the first of them clean: Wan's image-to-video pass, with a timestep for each token."""
    reference, folder = wan
    model = AIMForWorldAction.from_wan(folder, **FIELDS, chunk_latent_frames=frames)
    rgb = torch.randn(2, 6, frames, height, width)
    text = torch.randn(2, 7, 20)
    t = torch.cat([torch.zeros(2, 1), torch.rand(2, 1).expand(2, frames - 1)], dim=1)

    video = model._video_segment(Kind.FUTURE_RGB, torch.arange(1, 1 + frames), rgb, t)
    features = model.condition_embedder.text_embedder(text)
    (segment,), _ = model._packed_pass([video], [], features, (height // 2, width // 2))
    velocity = model._video_velocity(*segment, frames, height, width)

    token_times = 1000 * t.repeat_interleave(height * width // 4, dim=1)
    expected = reference(rgb, token_times, text, return_dict=False)[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity, expected, rtol=0, atol=1e-5)


def test_every_tensor_is_accounted_for(wan):
    reference, folder = wan
    model, report = AIMForWorldAction.from_wan(folder, **FIELDS, output_loading_info=True)
    assert model.config.history_chunks == PRESETS["wan2.2-ti2v-5b"]["history_chunks"]
    theirs, ours = reference.state_dict(), model.state_dict()
    assert set(report.taken) == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert set(ours) == {*report.taken, *report.resampled, *report.new}
    assert not any(parameter.is_meta for parameter in model.parameters())
    new = ["value_noise_token.weight", "action_head.action_embedder.0.weight", "action_head.proj_out.weight"]
    assert set(new) < set(report.new) and len(report.new) == 7
    assert model.value_noise_token.weight.std() > 0 and ours["action_head.action_embedder.0.weight"].std() > 0
    assert (ours["action_head.proj_out.weight"] == 0).all()  # a new head starts silent
    assert not [name for name in ours if ".action.attn2" in name]
    counts = f"{len(theirs)} taken, {len(report.resampled)} resampled, 7 new, 0 left_over"
    assert str(report).splitlines()[0].endswith(counts)


def test_the_action_head_is_resampled_from_the_video_stream(wan):
    reference, folder = wan
    model = AIMForWorldAction.from_wan(folder, **FIELDS)
    # 72 -> 36: each new coordinate lies halfway between two old ones; 72 inputs become 36, hence sqrt(2).
    theirs, ours = reference.blocks[1].attn1.to_q.weight, model.blocks[1].action.attn1.to_q.weight
    torch.testing.assert_close(ours, (theirs[:, ::2] + theirs[:, 1::2]) / 2 * 2**0.5)
    assert torch.equal(model.blocks[1].action.attn1.norm_q.weight, reference.blocks[1].attn1.norm_q.weight)
    # The six parts of the modulation stay apart.
    theirs, ours = reference.condition_embedder.time_proj, model.action_head.condition_embedder.time_proj
    part, new_part = theirs.bias[72 * 4 : 72 * 5], ours.bias[36 * 4 : 36 * 5]
    torch.testing.assert_close(new_part, (part[::2] + part[1::2]) / 2)
    same = AIMForWorldAction.from_wan(folder, **FIELDS | {"action_hidden_size": 72, "action_ffn_dim": 80})
    assert torch.equal(same.blocks[0].action.ffn.net[2].weight, reference.blocks[0].ffn.net[2].weight)
    # A third as wide takes every third number.
    torch.testing.assert_close(resample(torch.arange(9.0), (3,)), torch.tensor([1.0, 4.0, 7.0]))


def test_dtype_and_saving(wan, tmp_path):
    _, folder = wan
    model = AIMForWorldAction.from_wan(folder, dtype=torch.bfloat16, **FIELDS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    again = AIMForWorldAction.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_what_diffusers_saves_in_bfloat16_has_one_dtype(wan, tmp_path):
    """diffusers keeps norms, modulation and time embedding in float32, which AIM's layers don't mix."""
    theirs = WanTransformer3DModel.from_pretrained(wan[1] / "transformer", torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16, torch.float32}
    theirs.save_pretrained(tmp_path / "transformer")
    model = AIMForWorldAction.from_wan(tmp_path, **FIELDS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} == {model.dtype}


def change_shard(folder, tensor, change):
    """Rewrites the file that holds `tensor` (and the index) with what `change` makes of its tensors."""
    index_path = folder / f"{WEIGHTS}.index.json"
    index = json.loads(index_path.read_text())
    path = folder / index["weight_map"][tensor]
    tensors = change(load_file(path))
    save_file(tensors, path)
    kept = {name: file for name, file in index["weight_map"].items() if file != path.name}
    index_path.write_text(json.dumps({"weight_map": kept | dict.fromkeys(tensors, path.name)}))


NORM = "blocks.1.attn1.norm_k.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if n != NORM}, f"{NORM} is missing"),
        (lambda t: {("blocks.1.attn1.k_norm" if n == NORM else n): v for n, v in t.items()}, "k_norm is unknown"),
        (lambda t: t | {NORM: t[NORM][:-1].contiguous()}, r"has shape \(71,\), expected \(72,\)"),
        (lambda t: t | {"blocks.1.adapter": torch.zeros(2)}, "blocks.1.adapter is unknown"),
    ],
    ids=["removed", "renamed", "reshaped", "added"],
)
def test_no_weight_is_dropped_in_silence(wan, tmp_path, change, message):
    folder = shutil.copytree(wan[1], tmp_path / "wan")
    change_shard(folder / "transformer", NORM, change)
    with pytest.raises(ValueError, match=message):
        AIMForWorldAction.from_wan(folder, **FIELDS)


def test_damaged_folders_are_named(wan, tmp_path):
    folder = shutil.copytree(wan[1], tmp_path / "wan")
    shard = sorted((folder / "transformer").glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=shard.name):
        AIMForWorldAction.from_wan(folder, **FIELDS)
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        AIMForWorldAction.from_wan(folder, **FIELDS)
    shard.write_bytes(whole)
    tensors = load_file(shard)
    name = next(iter(tensors))
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, shard)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        AIMForWorldAction.from_wan(folder, **FIELDS)
    index = folder / "transformer" / f"{WEIGHTS}.index.json"
    for content in ("{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 5}}'):
        index.write_text(content)
        with pytest.raises(OSError, match="index.json can't be read .*download the checkpoint again|transformer/5 is"):
            AIMForWorldAction.from_wan(folder, **FIELDS)
    index.unlink()
    with pytest.raises(OSError, match="and no index; delete the files that are not meant"):
        AIMForWorldAction.from_wan(folder, **FIELDS)
    (folder / "transformer" / "config.json").write_text("[]")
    with pytest.raises(OSError, match="config.json can't be read .it holds a JSON list"):
        AIMForWorldAction.from_wan(folder, **FIELDS)
    with pytest.raises(OSError, match="config.json"):
        AIMForWorldAction.from_wan(folder, subfolder="vae", **FIELDS)


@pytest.fixture
def lingbot_va(wan, tmp_path):
    """The files of LingBot-VA's transformer: Wan's, a linear patch embedding, parts for actions, stale tensors."""
    reference, _ = wan
    tensors = dict(reference.state_dict())
    patch = {name: tensors[f"patch_embedding.{name}"] for name in ("weight", "bias")}
    tensors |= {"patch_embedding_mlp.weight": patch["weight"].flatten(1), "patch_embedding_mlp.bias": patch["bias"]}
    tensors |= {f"patch_embedding.{name}": torch.randn_like(tensor) for name, tensor in patch.items()}
    tensors |= {f"action_embedder.{name}": torch.randn(72) for name in ("weight", "bias")}
    tensors |= {f"action_proj_out.{name}": torch.randn(30) for name in ("weight", "bias")}
    tensors |= {f"condition_embedder_action.time_proj.{name}": torch.randn(9) for name in ("weight", "bias")}
    folder = tmp_path / "lingbot" / "transformer"
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
    fields = WAN | {"action_dim": 30, "eps": 1e-6, "attn_mode": "flex", "rope_max_seq_len": 1024}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder.parent


def test_the_video_side_of_lingbot_va(wan, lingbot_va):
    """Its live patch embedding is taken, not the stale one that has Wan's name; what is left over is listed."""
    reference, _ = wan
    model, report = AIMForWorldAction.from_lingbot_va(lingbot_va, **FIELDS, output_loading_info=True)
    ours = model.state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    assert model.config.action_dim == 16
    assert len(report.left_over) == 8 and "patch_embedding.weight" in report.left_over
    assert "left_over  action_proj_out.bias" in str(report)
    with pytest.raises(ValueError, match="action_embedder.bias is unknown.*patch_embedding_mlp.weight is unknown"):
        AIMForWorldAction.from_wan(lingbot_va, **FIELDS)
    with pytest.raises(ValueError, match="patch_embedding.weight is missing"):
        AIMForWorldAction.from_lingbot_va(wan[1], **FIELDS)


def test_models_that_aim_cannot_take_are_refused(wan, tmp_path):
    said_again = AIMForWorldAction.from_wan(wan[1], **FIELDS, patch_size=(1, 2, 2), num_layers=3)
    assert said_again.config.patch_size == (1, 2, 2)
    with pytest.raises(ValueError, match="num_layers can't be chosen"):
        AIMForWorldAction.from_wan(wan[1], num_layers=5)
    with pytest.raises(ValueError, match="action_hiden_size"):
        AIMForWorldAction.from_wan(wan[1], action_hiden_size=5)
    torch.manual_seed(0)
    WanTransformer3DModel(**WAN | {"image_dim": 8}).save_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match="image_dim is 8"):
        AIMForWorldAction.from_wan(tmp_path, **FIELDS)


@pytest.fixture(scope="module")
def wan_pipeline(tmp_path_factory):
    """The folder of a whole, small Wan2.2 pipeline, saved by diffusers."""
    torch.manual_seed(0)
    text = UMT5Config(vocab_size=20, d_model=20, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    folder = tmp_path_factory.mktemp("wan_pipeline")
    WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=UMT5EncoderModel(text),
        vae=make_vae(),
        scheduler=UniPCMultistepScheduler(flow_shift=5.0),
        transformer=WanTransformer3DModel(**WAN | {"in_channels": 4, "out_channels": 4}),
        transformer_2=None,
        expand_timesteps=True,
    ).save_pretrained(folder)
    return folder


def test_a_whole_pipeline_from_wan(wan_pipeline, tmp_path):
    processor = make_processor(canvas_size=(96, 64), cameras=t_pose_canvas((96, 64), HEAD, WRIST))
    head = dict(action_hidden_size=36, action_ffn_dim=40, chunk_latent_frames=1, actions_per_latent_frame=8)
    pipe = AIMPipeline.from_wan(wan_pipeline, processor=processor, **head)
    pipe.set_progress_bar_config(disable=True)
    wan = WanPipeline.from_pretrained(wan_pipeline)
    for ours, theirs in ((pipe.vae, wan.vae), (pipe.text_encoder, wan.text_encoder)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    observation = make_observation(np.random.default_rng(0))

    def act(pipe):
        session = pipe.start("put the red block")
        return pipe(observation, session=session, generator=torch.Generator().manual_seed(0))

    out = act(pipe)
    assert out.actions.shape == (1, 8, 16) and np.isfinite(out.actions).all()
    pipe.save_pretrained(tmp_path / "aim")
    again = AIMPipeline.from_pretrained(tmp_path / "aim")
    again.set_progress_bar_config(disable=True)
    # Loaded tensors lie elsewhere in memory, which rounds their products otherwise.
    np.testing.assert_allclose(act(again).actions, out.actions, rtol=0, atol=1e-5)

    robotwin = AIMPipeline.from_wan(wan_pipeline, **head, dtype="bfloat16")
    assert robotwin.processor.canvas_size == [384, 320] and robotwin.model.config.action_dim == 16
    dtypes = [part.dtype for part in (robotwin.model, robotwin.text_encoder, robotwin.vae)]
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]
    for load in (AIMPipeline.from_wan, AIMForWorldAction.from_wan):
        with pytest.raises(ValueError, match="dtype is 'rubbish'; expected one of float32, bfloat16"):
            load(wan_pipeline, **head, dtype="rubbish")


@pytest.mark.parametrize("component", ["vae", "text_encoder", "transformer"])
def test_pickled_weights_are_refused_by_name(wan_pipeline, tmp_path, component):
    """Alone, and beside safetensors, which may hold other weights."""
    folder = shutil.copytree(wan_pipeline, tmp_path / "wan")
    for files in ((), (folder / component).glob("*.safetensors")):
        (folder / component / "model.bin").write_bytes(b"")
        for file in files:
            file.unlink()
        with pytest.raises(OSError, match=f"{component}/model.bin is a pickle"):
            AIMPipeline.from_wan(folder, **FIELDS)


def test_a_whole_pipeline_from_lingbot_va(wan_pipeline, tmp_path):
    """Its folders have neither a model_index.json nor a scheduler."""
    folder = tmp_path / "lingbot"
    for part in ("vae", "text_encoder", "tokenizer", "transformer"):
        shutil.copytree(wan_pipeline / part, folder / part)
    path = folder / "transformer" / WEIGHTS
    tensors = load_file(path)
    tensors["patch_embedding_mlp.weight"] = tensors.pop("patch_embedding.weight").flatten(1)
    tensors["patch_embedding_mlp.bias"] = tensors.pop("patch_embedding.bias")
    save_file(tensors, path)
    pipes = AIMPipeline.from_wan(wan_pipeline), AIMPipeline.from_lingbot_va(folder)
    streams = [
        {n: p for n, p in pipe.model.named_parameters() if "action_head" not in n and ".action." not in n}
        for pipe in pipes
    ]
    streams = [{n: p for n, p in stream.items() if n != "value_noise_token.weight"} for stream in streams]
    assert streams[0].keys() == streams[1].keys()
    assert all(torch.equal(streams[0][name], streams[1][name]) for name in streams[0])


def test_a_pipeline_that_lacks_a_tensor_is_refused(wan_pipeline, tmp_path):
    folder = shutil.copytree(wan_pipeline, tmp_path / "wan")
    for part, file in (("vae", WEIGHTS), ("text_encoder", "model.safetensors")):
        whole = load_file(folder / part / file)
        name = sorted(whole)[3]
        save_file({n: t for n, t in whole.items() if n != name}, folder / part / file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"lacks .*{name}"):
            AIMPipeline.from_wan(folder)
        save_file(whole, folder / part / file, metadata={"format": "pt"})


PEAK_OF_LOADING = """
import sys
from aim_hf import AIMForWorldAction
import torch

def status(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

before = status("VmRSS")
model = AIMForWorldAction.from_wan(sys.argv[1], action_dim=16, action_hidden_size=128, action_ffn_dim=512)
for parameter in model.parameters():
    parameter.sum()  # what is mapped from the files counts once it is read
print(sum(p.nbytes for p in model.parameters()), status("VmHWM") - before)
"""


def test_loading_takes_hardly_more_than_the_weights(tmp_path):
    sizes = dict(num_attention_heads=12, attention_head_dim=64, ffn_dim=3072, num_layers=12, text_dim=64)
    WanTransformer3DModel(**WAN | sizes).save_pretrained(tmp_path / "transformer", max_shard_size="100MB")
    command = [sys.executable, "-c", PEAK_OF_LOADING, str(tmp_path)]
    weights, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert weights > 400e6
    assert peak < 1.3 * weights, f"{peak / weights:.2f}"
