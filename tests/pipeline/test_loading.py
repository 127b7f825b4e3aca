"""Placing, quantizing and offloading a pipeline, as the commands load it."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from aim_hf import AIM_TINY, AIMForWorldAction, AIMPipeline
from aim_hf.commands import evaluate
from aim_hf.commands.policy_options import given_options
from aim_hf.pipeline.loading_config import LoadingConfig
from aim_hf.rollout.policies import AIMPolicy
from aim_hf.utils.extras import MissingExtra

from ..fixtures_pipeline import make_observation, make_pipeline


def first_chunk(pipe: AIMPipeline) -> np.ndarray:
    """Actions, of a generator and an observation that are always the same."""
    pipe.set_progress_bar_config(disable=True)
    session = pipe.start("ring the bell")
    generator = torch.Generator().manual_seed(0)
    return pipe(make_observation(np.random.default_rng(0)), session=session, generator=generator).actions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a pipeline whose widths are multiples of 64, as the full size's are and bitsandbytes wants on a CPU."""
    widths = dict(num_attention_heads=2, attention_head_dim=32, ffn_dim=64, text_dim=64)
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipeline(text_width=64, **widths).save_pretrained(folder)
    return folder


def test_the_text_encoder_stays_where_it_is_told_to(folder):
    """It is never on the other components' device. `meta` is a second device that every machine has."""
    pipe = AIMPipeline.load(folder, "cpu", LoadingConfig(text_encoder_device="meta"))
    assert [pipe.vae.device.type, pipe.model.device.type, pipe.text_encoder.device.type] == ["cpu", "cpu", "meta"]


def test_a_prompt_is_encoded_layer_by_layer(folder):
    """As `enable_sequential_cpu_offload` does, whose hooks leave the weights on the meta device between calls."""
    pipe = AIMPipeline.from_pretrained(folder)
    expected = pipe.encode_prompt("ring the bell")
    cpu_offload(pipe.text_encoder, torch.device("cpu"))
    assert pipe.text_encoder.device.type == "meta"
    torch.testing.assert_close(pipe.encode_prompt("ring the bell"), expected, rtol=0, atol=1e-6)


def test_a_device_map_names_one_device(folder):
    pipe = AIMPipeline.from_pretrained(folder, device_map="cpu")
    assert np.isfinite(first_chunk(pipe)).all()
    for spread in ("balanced", "auto"):
        with pytest.raises(ValueError, match=f"device_map is '{spread}'; expected one device, such as 'cuda'"):
            AIMPipeline.from_pretrained(folder, device_map=spread)


@pytest.mark.parametrize("output_loading_info", [False, True])
def test_a_model_is_on_one_device(folder, tmp_path, output_loading_info):
    """Layers on disk stand for layers on a second GPU."""
    load = partial(AIMForWorldAction.from_pretrained, folder / "model", output_loading_info=output_loading_info)
    load(device_map="auto")
    model = AIMForWorldAction.from_pretrained(folder / "model")
    parts = [*dict(model.named_children()), *dict(model.named_parameters(recurse=False))]
    with pytest.raises(ValueError, match="device_map puts the model on cpu, disk; expected one device"):
        load(device_map=dict.fromkeys(parts, "cpu") | {"blocks": "disk"}, offload_folder=tmp_path)


@pytest.mark.parametrize(("quantization", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_quantized_weights(folder, quantization, package):
    """Matrices of the video experts and the text encoder are smaller, those of the actions as they were; the chunk
    hardly differs."""
    pytest.importorskip(package)
    pipe = AIMPipeline.load(folder, "cpu", LoadingConfig(quantization=quantization))
    plain = AIMPipeline.from_pretrained(folder)
    kinds = {name for name, weight in pipe.model.named_parameters() if type(weight) is not torch.nn.Parameter}
    matrices = ("attn1.to_q", "attn1.to_out.0", "attn2.to_k", "ffn.net.0.proj", "ffn.net.2")
    assert {f"blocks.0.{name}.weight" for name in matrices} <= kinds
    assert not any("action" in name or "condition_embedder" in name or name == "proj_out.weight" for name in kinds)
    assert any(type(weight) is not torch.nn.Parameter for weight in pipe.text_encoder.parameters())
    actions, expected = first_chunk(pipe), first_chunk(plain)
    error = np.abs(actions - expected).mean() / np.abs(expected).mean()
    assert 0 < error < 0.1


def test_a_quantizer_that_is_not_installed_is_named(folder, monkeypatch):
    for package in ("torchao", "torchao.quantization", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, package, None)
    for quantization, package in (("int8", "torchao"), ("nf4", "bitsandbytes")):
        with pytest.raises(MissingExtra, match=f"{package} is not installed; it comes with the extra 'quantization'"):
            AIMPipeline.load(folder, "cpu", LoadingConfig(quantization=quantization))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int3"}, "quantization is 'int3'; expected one of int8, nf4, or None"),
        ({"offload": "disk"}, "offload is 'disk'; expected one of model, sequential, or None"),
        ({"offload": "model", "text_encoder_device": "cpu"}, "give one of them"),
        ({"offload": "model"}, "offload is 'model' and the device a CPU; there is no GPU to relieve"),
        ({"text_encoder_device": "moon"}, "device is 'moon'; expected such as cpu, cuda or cuda:1"),
        ({"text_encoder_device": "cuda:99"}, "device is 'cuda:99'; PyTorch finds [0-9]+ GPUs here"),
        ({"attn_implementation": "flash"}, 'attn_implementation="flash"` is not supported'),
    ],
)
def test_options_that_cannot_work_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        AIMPolicy.from_pretrained(folder, "cpu", **options)


def test_an_evaluation_loads_as_it_is_told(folder):
    """What changes the numbers is among the policy's settings; where the text encoder is doesn't."""
    command = f"--policy {folder} --episodes 1 --output_dir out --dtype float64 --attn_implementation eager"
    args, _ = evaluate.parse([*command.split(), "--text_encoder_device", "cpu", "--num_inference_steps", "2"])
    assert given_options(args, LoadingConfig) == {
        "dtype": "float64",
        "attn_implementation": "eager",
        "text_encoder_device": "cpu",
    }
    policy = evaluate.load_policy(args, None, torch.device("cpu"))
    assert policy.pipe.model.dtype == torch.float64 and policy.pipe.model.config._attn_implementation == "eager"
    given = {"dtype": "float64", "attn_implementation": "eager", "num_inference_steps": 2}
    assert given.items() <= policy.settings.items() and "text_encoder_device" not in policy.settings


def test_a_server_decides_how_its_policy_is_loaded(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(["--policy", "ws://here:1", "--episodes", "1", "--output_dir", "out", "--quantization", "int8"])
    assert "quantization: the server decides that" in capsys.readouterr().err


def test_nf4_needs_widths_that_a_cpu_can_unpack():
    pytest.importorskip("bitsandbytes")
    with pytest.raises(
        ValueError, match="quantization is 'nf4' and the width 160; on a CPU it must be divisible by 64"
    ):
        AIMPipeline.load(AIM_TINY, "cpu", LoadingConfig(quantization="nf4"))
