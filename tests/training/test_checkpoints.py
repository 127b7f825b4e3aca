"""A run goes on from a complete checkpoint, of a run with the same settings."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from aim_hf.rl import AIMGRPOConfig
from aim_hf.training.arguments import AIMTrainingArguments
from aim_hf.training.checkpoints import checkpoint_to_resume, claim_run, last_checkpoint
from aim_hf.training.trainer import EMA_FILE, AIMTrainer
from aim_hf.utils.files import claim

from .test_stage1 import latents, pipe, train  # noqa: F401


@pytest.fixture(scope="module")
def run(pipe, latents, tmp_path_factory):  # noqa: F811
    """A run of two steps with a checkpoint at each."""
    folder = tmp_path_factory.mktemp("run")
    train(pipe, latents, folder, 2, save_steps=1)
    return folder


def test_the_checkpoint_that_was_asked_for(run, tmp_path):
    newest, first = str(run / "checkpoint-2"), str(run / "checkpoint-1")
    assert checkpoint_to_resume(run, None) == checkpoint_to_resume(run, "True") == last_checkpoint(run) == newest
    assert checkpoint_to_resume(tmp_path, first) == first
    assert checkpoint_to_resume(tmp_path, None) is None
    with pytest.raises(OSError, match=f"{tmp_path} holds no complete checkpoint to go on from"):
        checkpoint_to_resume(tmp_path, True)
    with pytest.raises(OSError, match="not_there/trainer_state.json is missing.*choose another"):
        checkpoint_to_resume(run, str(tmp_path / "not_there"))


def test_colleagues_may_read_a_checkpoint(run):
    """safetensors lets the owner alone read its files, whatever the umask."""
    modes = {path.name: path.stat().st_mode for path in (run / "checkpoint-2").iterdir()}
    assert {"model.safetensors", EMA_FILE} <= modes.keys() and set(modes.values()) == {modes["trainer_state.json"]}


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "model.safetensors", EMA_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_damaged_checkpoint_is_told_by_name(pipe, latents, run, tmp_path, name):  # noqa: F811
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(run / "checkpoint-2", folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=f"{folder / name} can't be read"):
        train(pipe, latents, tmp_path, 3, resume=str(folder))
    if name in ("optimizer.pt", "scheduler.pt", EMA_FILE):  # without them it would begin anew
        (folder / name).unlink()
        with pytest.raises(OSError, match=f"{folder / name} is missing"):
            train(pipe, latents, tmp_path, 3, resume=str(folder))


def test_a_model_alone_is_not_resumed(pipe, latents, tmp_path):  # noqa: F811
    train(pipe, latents, tmp_path, 1, save_steps=1, save_only_model=True)
    folder = tmp_path / "checkpoint-1"
    told = f"{folder} holds no optimizer state, as --save_only_model saves it, and can't be resumed; give another"
    for resume in (True, str(folder)):
        with pytest.raises(OSError, match=told):
            train(pipe, latents, tmp_path, 2, resume=resume)


def test_a_checkpoint_that_is_written_again_is_not_whole_before_its_end(pipe, latents, run, tmp_path, monkeypatch):  # noqa: F811
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(AIMTrainer, "_save_scaler", kill)
    with pytest.raises(KeyboardInterrupt):
        train(pipe, latents, tmp_path, 2, resume=str(tmp_path / "checkpoint-1"), save_steps=1)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_a_checkpoint_may_have_any_name(pipe, latents, run, tmp_path):  # noqa: F811
    shutil.copytree(run / "checkpoint-1", tmp_path / "best-of-9")
    train(pipe, latents, tmp_path, 2, resume=str(tmp_path / "best-of-9"), save_steps=1)
    averaged, expected = (load_file(folder / "checkpoint-2" / EMA_FILE) for folder in (tmp_path, run))
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in expected.items())


def test_a_trainer_that_has_resumed_a_run_may_begin_another(pipe, latents, run, tmp_path):  # noqa: F811
    trainer = train(pipe, latents, tmp_path, 3, resume=str(run / "checkpoint-2"))
    trainer.optimizer, trainer.args.learning_rate = None, 0.0  # the averages stay the weights that they begin with
    trainer.train()
    assert trainer.ema.optimization_step == 3 and trainer.resumed_from is None
    for average, parameter in zip(trainer.ema.shadow_params, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(average, parameter, rtol=0, atol=1e-6)


def arguments(kind=AIMTrainingArguments, **options):
    return kind(report_to="none", use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate 5e-05 there, 0.001 now"),
        ({"seed": 3}, "seed 42 there, 3 now"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type 'linear' there, 'cosine' now"),
        ({"warmup_steps": 9}, "warmup_steps"),
        ({"num_draws": 2, "prompt_dropout": 0.1}, "num_draws 1 there, 2 now; prompt_dropout 0.0 there, 0.1 now"),
        ({"muon_learning_rate": 0.02}, "muon_learning_rate"),
        ({"per_device_train_batch_size": 4}, "batch_size 8 there, 4 now"),
        ({"gradient_accumulation_steps": 2}, "batch_size 8 there, 16 now"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy 'random' there, 'sequential' now"),
        ({"length_column_name": "chunks"}, "length_column_name 'length' there, 'chunks' now"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last False there, True now"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size False there, True now"),
        ({"optim_target_modules": ["blocks"]}, r"optim_target_modules None there, \['blocks'\] now"),
    ],
    ids=str,
)
def test_a_run_with_other_settings_is_refused(tmp_path, options, message):
    claim(tmp_path, arguments().made_from() | {"latents": "a"}, "checkpoint-*")
    with pytest.raises(FileExistsError, match=message):
        claim(tmp_path, arguments(**options).made_from() | {"latents": "a"}, "checkpoint-*")
    with pytest.raises(FileExistsError, match="latents 'a' there, 'b' now"):
        claim(tmp_path, arguments().made_from() | {"latents": "b"}, "checkpoint-*")


@pytest.mark.parametrize("kind", [AIMTrainingArguments, AIMGRPOConfig])
def test_a_checkpoint_of_another_folder_goes_on_with_its_own_settings_alone(run, tmp_path, kind):
    """The optimizer and the schedule went on with the checkpoint's learning rate, and the record told another."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(run / "checkpoint-2", first / "checkpoint-2")

    def begin(of="a", **options):
        given = str(first / "checkpoint-2")
        return claim_run(arguments(kind, output_dir=second, resume_from_checkpoint=given, **options), {"of": of})

    with pytest.raises(OSError, match="first/made_from.json is missing; copy it there from the run that made"):
        begin()
    claim(first, arguments(kind).made_from() | {"of": "a"})
    for message, options in (
        ("learning_rate .* there, 0.01 now. Give the same", {"learning_rate": 0.01}),
        ("of 'a' there, 'b' now. Give the same", {"of": "b"}),
    ):
        with pytest.raises(ValueError, match=f"checkpoint-2 is of a run that was made from something else: {message}"):
            begin(**options)
        assert not second.exists()
    assert begin(max_steps=9) == str(first / "checkpoint-2") and (second / "made_from.json").is_file()


@pytest.mark.parametrize("output", ["pipeline", "adapter", "checkpoint-2"])
def test_what_another_run_wrote_is_not_replaced(tmp_path, output):
    """Such as the pipeline that a run begins with, in the folder that it would write its own to."""
    (tmp_path / output).mkdir()
    with pytest.raises(
        FileExistsError, match=f"/{output} exists, but not .*/made_from.json, the record of its inputs"
    ):
        claim_run(arguments(output_dir=tmp_path), {})
    assert [path.name for path in tmp_path.iterdir()] == [output]


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 9, "logging_steps": 3, "save_steps": 7, "sample_steps": 2, "output_dir": "elsewhere"},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "dataloader_num_workers": 2},
    ],
    ids=["where and how long", "the same batch"],
)
def test_what_does_not_change_what_is_learned_may_change(tmp_path, options):
    claim(tmp_path, arguments().made_from(), "checkpoint-*")
    claim(tmp_path, arguments(**options).made_from(), "checkpoint-*")
    assert json.loads((tmp_path / "made_from.json").read_text())["learning_rate"] == arguments().learning_rate


@pytest.mark.parametrize("kind", [AIMTrainingArguments, AIMGRPOConfig])
def test_the_precision_is_recorded_whoever_asked_for_it(monkeypatch, kind):
    """`accelerate launch` hands that of its configuration over in the environment."""
    assert arguments(kind, bf16=True).made_from()["bf16"] and not arguments(kind).made_from()["bf16"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert arguments(kind).made_from() == arguments(kind, bf16=True).made_from()


def test_stage_2_may_change_its_machines_and_not_its_objective():
    def made_from(**options):
        return json.dumps(arguments(AIMGRPOConfig, **options).made_from())

    assert made_from(num_env_workers=3, env_timeout=9, max_kl=0.1, hacking_patience=2) == made_from()
    for options in ({"beta": 0.1}, {"noise_level": 0.5}, {"num_generations": 4}, {"steps_per_generation": 2}):
        assert made_from(**options) != made_from(), options
