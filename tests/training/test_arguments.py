"""Ranges of the training arguments, those of transformers and those of stage 1."""

import math

import pytest

from aim_hf.rl import AIMGRPOConfig
from aim_hf.training.arguments import AIMTrainingArguments
from aim_hf.utils.versions import ACTIVATION_CHECKPOINTING

NAN = math.nan
NUMBER, SHARE, WHOLE = "a finite number, at least 0", "0 to 1", "a whole number, at least 1"
SHARED = [
    ("learning_rate", [-1.0, NAN, math.inf, None], NUMBER),
    ("weight_decay", [-1.0, NAN], NUMBER),
    ("max_grad_norm", [-1.0, NAN], NUMBER),
    ("adam_epsilon", [-1e-8], NUMBER),
    ("warmup_steps", [NAN], NUMBER),
    ("num_train_epochs", [NAN, -1.0], NUMBER),
    ("save_steps", [-1], NUMBER),
    ("eval_steps", [-7.0, NAN], NUMBER),
    ("adam_beta1", [-0.1, 1.0, NAN], "0 to 0.999999"),
    ("adam_beta2", [1.5], "0 to 0.999999"),
    ("per_device_train_batch_size", [0, -8, 2.5], WHOLE),
    ("gradient_accumulation_steps", [0, 1.5], WHOLE),
    ("dataloader_num_workers", [-1], "a whole number, at least 0"),
    ("max_steps", [-2, 2.5], "a whole number, at least -1"),
    *((name, [-1, 2**32, 2**64], "a whole number, 0 to 4294967295") for name in ("seed", "data_seed")),
]
STAGE_1 = [
    ("value_foreground_weight", [-100.0, NAN], NUMBER),
    ("muon_learning_rate", [-1.0, NAN], NUMBER),
    *((name, [5.0, -1.0, NAN], SHARE) for name in ("ema_decay", "history_noise_probability", "history_noise_max")),
    *((name, [2.0, -1.0, NAN], SHARE) for name in ("committed_probability", "prompt_dropout")),
    ("imagined_value_probability", [2.0, -1.0, NAN], SHARE),
    *((name, [0, -1, 1.5, True], WHOLE) for name in ("num_draws", "num_action_draws", "committed_max")),
    *((name, [-1, 0.5], "a whole number, at least 0") for name in ("imagined_value_start", "sample_steps")),
]


def refused(kind, name, value, expected):
    with pytest.raises(ValueError) as error:
        kind(report_to="none", use_cpu=True, **{name: value})
    assert str(error.value) == f"{name} is {value!r}; expected {expected}."


@pytest.mark.parametrize(("name", "values", "expected"), SHARED, ids=str)
def test_numbers_of_both_stages_out_of_range_are_named(name, values, expected):
    for kind in (AIMTrainingArguments, AIMGRPOConfig):
        for value in values:
            refused(kind, name, value, expected)


def test_an_empty_output_dir_is_not_the_current_folder():
    for kind in (AIMTrainingArguments, AIMGRPOConfig):
        refused(kind, "output_dir", "", "a path. Give '.' for the current folder")


def test_settings_that_a_training_does_not_support_are_refused():
    """They were ignored, or ended in a traceback once the pipeline was loaded."""
    shared = {"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0}
    of_stage_2 = {"data_seed": 3, "dataloader_num_workers": 2, "dataloader_drop_last": True}
    of_stage_2 |= {
        "train_sampling_strategy": "sequential",
        "auto_find_batch_size": True,
        ACTIVATION_CHECKPOINTING: True,
    }
    for kind, refused_ones in ((AIMTrainingArguments, shared), (AIMGRPOConfig, shared | of_stage_2)):
        for name, value in refused_ones.items():
            with pytest.raises(ValueError) as error:
                kind(report_to="none", use_cpu=True, **{name: value})
            assert str(error.value) == f"{name} is {value!r}, which this training doesn't support; leave it out."
    AIMTrainingArguments(report_to="none", use_cpu=True, resume_from_checkpoint=True, **of_stage_2)


@pytest.mark.parametrize(("name", "values", "expected"), STAGE_1, ids=str)
def test_numbers_of_stage_1_out_of_range_are_named(name, values, expected):
    for value in values:
        refused(AIMTrainingArguments, name, value, expected)


def test_muon_takes_the_place_of_another_optimizer():
    options = {"report_to": "none", "use_cpu": True, "muon_learning_rate": 0.02}
    with pytest.raises(ValueError, match="^optim is 'sgd' and muon_learning_rate 0.02; .* Leave out one of the two.$"):
        AIMTrainingArguments(optim="sgd", **options)
    for optim in ("adamw_torch", "adamw_torch_fused"):
        AIMTrainingArguments(optim=optim, **options)
    AIMTrainingArguments(optim="sgd", **options | {"muon_learning_rate": 0.0})


def test_the_ends_of_the_ranges_are_in_them():
    shares = [name for name, _, expected in STAGE_1 if expected == SHARE]
    for end in (0, 1):
        args = AIMTrainingArguments(report_to="none", use_cpu=True, **dict.fromkeys(shares, end))
        assert all(getattr(args, name) == end for name in shares)
    numbers = [name for name, _, expected in SHARED + STAGE_1 if expected == NUMBER]
    args = AIMTrainingArguments(report_to="none", use_cpu=True, **dict.fromkeys(numbers, 0))
    assert all(getattr(args, name) == 0 for name in numbers)
    AIMTrainingArguments(report_to="none", use_cpu=True, num_inference_steps=None, max_steps=-1)


def test_a_reporter_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("aim_hf.training.arguments.get_available_reporting_integrations", lambda: ["trackio"])
    assert AIMTrainingArguments(report_to="trackio", use_cpu=True).report_to == ["trackio"]
    with pytest.raises(ValueError, match="^report_to is trackio wandb; pip install wandb first, or take none.$"):
        AIMTrainingArguments(report_to=["trackio", "wandb"], use_cpu=True)
