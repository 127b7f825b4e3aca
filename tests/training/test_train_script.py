"""`aim-hf train` on two CPU processes, as a user launches it."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aim_hf import AIMForWorldAction, AIMPipeline, AIMProcessor
from aim_hf.commands.train import Exporter
from aim_hf.commands.train import main as run_train
from aim_hf.hub import prepare
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.training.initial_model import initial_model
from aim_hf.training.trainer import EMA_FILE
from aim_hf.utils.files import MADE_FROM, UnreadableFile

from ..fixtures_pipeline import make_pipeline
from .test_stage1 import latents, make_episode, pipe, write_latents  # noqa: F401
from .test_stage1 import train as train_stage_1

ROOT = Path(__file__).parents[2]


def train(python: str, pipe, latents, folder: Path, launch: list[str], **options):  # noqa: F811
    """`aim-hf train` into `folder`/run, on `pipe` in `folder`/base."""
    pipe.save_pretrained(folder / "base")
    config = {
        name: value for name, value in pipe.model.config.to_diff_dict().items() if name != "transformers_version"
    }
    config = {name: value for name, value in config.items() if name not in ("architectures", "model_type", "dtype")}
    options = {
        "latents": latents,
        "policy": folder / "base",
        "preset": "tiny",
        "config": json.dumps(config),
        "output_dir": folder / "run",
        "window_chunks": 2,
        "held_out": 2,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "logging_steps": 2,
        "sample_steps": 2,
        "save_steps": 2,
        "report_to": "none",
    } | options
    given = (part for name, value in options.items() if value is not None for part in (f"--{name}", str(value)))
    command = [
        python,
        "-m",
        "accelerate.commands.launch",
        *("--main_process_port", "0"),  # other tests launch at the same time
        *launch,
        *("-m", "aim_hf", "train"),
        "--use_cpu",
    ]
    subprocess.run([*command, *given], check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_adapters_are_exported_apart_and_merged(python, pipe, latents, tmp_path):  # noqa: F811
    launch = ["--config_file", str(ROOT / "pipelines" / "accelerate" / "cpu.yaml")]
    launch += ["--no_python", sys.executable]  # its interpreter isn't forked, so that one launch is a reader's
    steps = {"num_inference_steps": 1, "num_action_inference_steps": 4, "action_noise_scale": 0.0}
    train(python, pipe, latents, tmp_path, launch, preset=None, config="{}", lora_rank=2, max_steps=2, **steps)
    trained = AIMPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert trained.sampling_config == SamplingConfig(**steps)
    merged = trained.model
    loaded = PeftModel.from_pretrained(
        AIMForWorldAction.from_pretrained(tmp_path / "base" / "model"), tmp_path / "run" / "adapter"
    )
    for (name, a), (_, b) in zip(merged.named_parameters(), loaded.merge_and_unload().named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    before = pipe.model.blocks[0].attn1.to_q.weight
    assert 0 < (merged.blocks[0].attn1.to_q.weight - before).abs().max() < 1e-2


def test_adapters_of_another_robot_than_their_base_bring_its_processor(latents, tmp_path):  # noqa: F811
    """With the base's own, actions would have the units of the base's robot."""
    make_pipeline("qpos").save_pretrained(tmp_path / "base")
    options = ["--latents", str(latents), "--policy", str(tmp_path / "base"), "--output_dir", str(tmp_path / "run")]
    options += ["--lora_rank", "2", "--max_steps", "1", "--sample_steps", "0", "--report_to", "none", "--use_cpu"]
    run_train([*options, "--learning_rate", "0.01", "--ema_decay", "0", "--disable_tqdm", "true"])

    whole, adapter = AIMPipeline.from_pretrained(tmp_path / "run" / "pipeline"), tmp_path / "run" / "adapter"
    processor = AIMProcessor.from_pretrained(adapter / "processor")
    base = AIMForWorldAction.from_pretrained(
        tmp_path / "base" / "model", action_dim=processor.action_dim, ignore_mismatched_sizes=True
    )
    model = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    loaded = AIMPipeline.from_pretrained(tmp_path / "base", model=model, processor=processor)
    for (name, a), (_, b) in zip(whole.model.named_parameters(), loaded.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    for name in ("action_statistics", "cameras", "action_space", "fps"):
        assert getattr(loaded.processor, name) == getattr(whole.processor, name), name


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_an_export_leaves_the_training_as_it_is(pipe, latents, tmp_path, lora_rank):  # noqa: F811
    """Whether and when a pipeline is exported changes nothing of what is learned."""
    pipe.save_pretrained(tmp_path / "base")
    trainer = train_stage_1(pipe, latents, tmp_path / "run", 2, lora_rank=lora_rank)
    tensors = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    state = torch.get_rng_state()
    model = trainer.model.get_base_model() if lora_rank else trainer.model
    Exporter(trainer, model, tmp_path / "base", pipe.vae, pipe.processor, has_adapter=bool(lora_rank)).export()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in trainer.model.state_dict().items())
    exported = AIMPipeline.from_pretrained(tmp_path / "run" / "pipeline").model
    name = "action_embedder.0.weight"
    averaged = next(tensor for key, tensor in trainer.averaged_tensors().items() if key.endswith(name))
    assert torch.equal(exported.action_head.state_dict()[name], averaged)


def test_adapters_are_exported_as_a_whole_or_not_at_all(pipe, latents, tmp_path):  # noqa: F811
    """On a full disk a folder with a new processor, and old weights or none, would look like an adapter."""
    pipe.save_pretrained(tmp_path / "base")
    trainer = train_stage_1(pipe, latents, tmp_path / "run", 1, lora_rank=2)
    model, adapter = trainer.model.get_base_model(), tmp_path / "run" / "adapter"
    exporter = Exporter(trainer, model, tmp_path / "base", pipe.vae, pipe.processor, has_adapter=True)
    exporter.export()
    size = (adapter / "adapter_model.safetensors").stat().st_size
    shutil.rmtree(adapter)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{adapter} could not be written"):
            exporter.export()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not adapter.exists()


def test_stage_1_goes_on_from_what_it_left_before_stage_2(pipe, tmp_path):  # noqa: F811
    left = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    pipe.model.separate_history_head()
    with torch.no_grad():
        pipe.model.action_head.proj_out.bias.add_(1)
    pipe.model.save_pretrained(tmp_path / "model")

    model = initial_model(tmp_path / "model", {}, adapters=False)
    assert model.state_dict().keys() == left.keys() and not model.config.separate_history_head
    assert all(torch.equal(tensor, left[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())

    other = {"action_dim": pipe.model.config.action_dim + 2}
    model = initial_model(tmp_path / "model", other, adapters=False)
    assert model.state_dict().keys() == left.keys() and model.action_head.proj_out.out_features == other["action_dim"]

    # Adapters are loaded on the folder's model again, with both of its heads.
    model = initial_model(tmp_path / "model", {}, adapters=True)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in pipe.model.state_dict().items())
    with pytest.raises(ValueError, match="of another size, history_head.* Train without --lora_rank: adapters keep"):
        initial_model(tmp_path / "model", other, adapters=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 3}, r"tensors are missing there, blocks\.2\.[\w.]* the first\. Leave out"),
        ({"num_layers": 1}, r"tensors are left over, blocks\.1\."),
        ({"cross_attn_norm": False}, r"4 tensors are left over, blocks\.0\.norm2\.bias the first"),
        ({"separate_history_head": True}, r"tensors are missing there, blocks\.0\.history\."),
        ({"text_dim": 8}, r"1 tensors are of another size, condition_embedder\.text_embedder\.linear_1\.weight"),
    ],
    ids=str,
)
def test_a_model_that_would_begin_with_random_layers_is_refused(tmp_path, fields, message):
    make_pipeline().model.save_pretrained(tmp_path / "model")
    for adapters in (False, True):
        with pytest.raises(ValueError, match=f"{tmp_path / 'model'} does not fit --config .*{message}"):
            initial_model(tmp_path / "model", fields, adapters)


def test_adapters_of_another_configuration_than_their_base_are_refused(tmp_path):
    """They are loaded on the base, whose visibility they would act with."""
    make_pipeline(visibility="aim").model.save_pretrained(tmp_path / "model")
    told = "--config changes visibility 'aim' to 'map_only', history_chunks 2 to None, which adapters don't hold"
    changed = {"visibility": "map_only", "history_chunks": None, "patch_size": [1, 1, 1], "value_loss_weight": 2.0}
    with pytest.raises(ValueError, match=told):
        initial_model(tmp_path / "model", changed, adapters=True)
    assert initial_model(tmp_path / "model", changed, adapters=False).config.visibility == "map_only"
    same = {"visibility": "aim", "patch_size": [1, 1, 1], "value_loss_weight": 2.0, "action_dim": 14}
    assert initial_model(tmp_path / "model", same, adapters=True).config.value_loss_weight == 2.0


def test_two_processes_log_save_and_resume_together(python, pipe, latents, tmp_path):  # noqa: F811
    """Process 0 alone samples; it must neither hold up nor lose the others when they log and save together. Their
    seed is the largest that numpy takes, from which process 1 counts on."""
    launch, seed = ["--multi_gpu", "--num_processes", "2"], 2**32 - 1
    train(python, pipe, latents, tmp_path, launch, seed=seed)
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    assert all("sample_peak_error" in entry and "value_loss" in entry for entry in logged)
    assert (tmp_path / "run" / "samples" / "step-0000004.png").exists()
    assert (tmp_path / "run" / "pipeline" / "training_curve.png").exists()
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["steps"] == 4 and record["log_history"][0]["step"] == 2 and "--max_steps 4" in record["command"]
    AIMPipeline.from_pretrained(tmp_path / "run" / "pipeline")

    # Interrupted after its second step, it goes on to the same end.
    once = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    averaged = load_file(tmp_path / "run" / "checkpoint-4" / EMA_FILE)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    train(python, pipe, latents, tmp_path, launch, seed=seed)
    again = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(once[name], again[name]) for name in once)
    again = load_file(tmp_path / "run" / "checkpoint-4" / EMA_FILE)
    assert all(torch.equal(averaged[name], again[name]) for name in averaged)


def test_settings_that_the_trainer_refuses_claim_no_folder(pipe, latents, tmp_path):  # noqa: F811
    pipe.save_pretrained(tmp_path / "base")
    options = {"latents": latents, "policy": tmp_path / "base", "output_dir": tmp_path / "run", "max_steps": 1}
    options |= {"report_to": "none", "committed_probability": 0.5, "committed_max": 99}
    with pytest.raises(ValueError, match="committed_max is 99; expected 1 to 7"):
        run_train(["--use_cpu", *(part for name, value in options.items() for part in (f"--{name}", str(value)))])
    assert not (tmp_path / "run" / MADE_FROM).exists()


def test_one_episode_may_be_overfitted_and_a_run_goes_on_only_as_it_began(pipe, latents, tmp_path, capsys):  # noqa: F811
    one = write_latents(tmp_path / "one", pipe, [make_episode(0)])
    pipe.save_pretrained(tmp_path / "base")
    options = {
        "latents": one,
        "policy": tmp_path / "base",
        "output_dir": tmp_path / "run",
        "held_out": 0,
        "max_steps": 1,
    }
    options |= {"sample_steps": 1, "save_steps": 1, "report_to": "none", "per_device_train_batch_size": 2}

    def train(**changes):
        run_train(
            ["--use_cpu", *(part for name, value in (options | changes).items() for part in (f"--{name}", str(value)))]
        )

    train()
    told = capsys.readouterr().out
    assert "training on 1 of 1 episodes (0 held out)" in told
    assert told.endswith(f"The pipeline with the averaged weights is {tmp_path / 'run' / 'pipeline'}\n")
    AIMPipeline.from_pretrained(tmp_path / "run" / "pipeline")

    # Its card lacks nothing but a license, and a run that goes on keeps what was added.
    card = tmp_path / "run" / "pipeline" / "README.md"
    assert "# run\n" in card.read_text() and "| an action | 16 numbers, `ee` |" in card.read_text()
    with pytest.raises(ValueError, match="its metadata lack license; add them"):
        prepare(card.parent)
    card.write_text(card.read_text().replace("---\n", "---\nlicense: mit\n", 1))
    assert prepare(card.parent).kind == "pipeline"
    train()
    assert f"Going on from {tmp_path / 'run' / 'checkpoint-1'}\n" in capsys.readouterr().out
    assert "license: mit" in card.read_text()
    for message, change in (
        ("made from something else: learning_rate 5e-05 there, 0.001 now", {"learning_rate": 1e-3}),
        ("made from something else: latents", {"latents": latents}),
        ("not_there/trainer_state.json is missing", {"resume_from_checkpoint": tmp_path / "not_there"}),
        (
            "checkpoint-1 is of a run that was made from something else: learning_rate 5e-05 there, 0.001 now",
            {
                "learning_rate": 1e-3,
                "output_dir": tmp_path / "other",
                "resume_from_checkpoint": tmp_path / "run" / "checkpoint-1",
            },
        ),
        ("held_out is 1; expected 0 to 0, for there are 1 episodes", {"held_out": 1}),
        ("have actions_per_latent_frame=8, and the model actions_per", {"config": '{"actions_per_latent_frame": 4}'}),
        (
            "--config is .*AIMConfig has no bar, foo; see its docstring",
            {"config": '{"foo": 1, "num_layers": 2, "bar": 2}'},
        ),
        ("--config is .*; expected a JSON object of AIMConfig fields.*: Expecting value", {"config": '{"foo": '}),
        ("--config is .*expected a JSON object of AIMConfig fields.*: it is a JSON list", {"config": '["ab"]'}),
        ("--config is .*: history_chunks is 0; it must be at least 1", {"config": '{"history_chunks": 0}'}),
        ("--config is .*: Field 'num_layers' expected int, got str", {"config": '{"num_layers": "2"}'}),
        ("num_inference_steps is 0; expected a whole number, at least 1", {"num_inference_steps": 0}),
        ("action_noise_scale is 2.0; expected 0 to 1", {"action_noise_scale": 2}),
        ("--lora_rank is 0; expected a whole number, at least 1", {"lora_rank": 0}),
        ("--max_steps is 0 and --num_train_epochs 3", {"max_steps": 0}),
        ("index.json is missing", {"latents": tmp_path / "base"}),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            train(**change)
    train(max_steps=2, logging_steps=1)
    assert (tmp_path / "run" / "checkpoint-2").is_dir()

    # Instructions that another text encoder encoded, and a shard that is shorter than the index says.
    other = AIMPipeline.from_pretrained(tmp_path / "base")
    other.text_encoder.shared.weight.data.add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="were encoded by another text encoder"):
        train(policy=tmp_path / "other", output_dir=tmp_path / "new")
    (shard,) = one.glob("shard-*.safetensors")
    with safe_open(shard, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    for change, message in (
        (
            lambda name, tensor: tensor[:8] if name.endswith(".actions") else tensor,
            r"\.actions has shape \[8, 16\]; expected \[32, 16\], by index.json",
        ),
        (lambda name, tensor: None if name.endswith(".value_cells") else tensor, "value_cells"),
    ):
        kept = {name: change(name, tensor) for name, tensor in tensors.items()}
        save_file({name: t.contiguous() for name, t in kept.items() if t is not None}, shard, metadata)
        with pytest.raises(UnreadableFile, match=message):
            train(output_dir=tmp_path / "new")
