"""Stage 1: trains AIM by flow matching (eq. 9) on latents made by `aim-hf encode-latents`.

    accelerate launch -m aim_hf train --latents runs/latents --policy runs/base --preset tiny --output_dir runs/aim \\
        --max_steps 8000 --per_device_train_batch_size 8 --muon_learning_rate 0.03

The checkpoint `--policy` provides the video codec and the text encoder. Its model is trained further; `--preset`
trains a new model of that size from random weights instead.

Every option of transformers' `TrainingArguments` works. A run that finds checkpoints in its output folder resumes
from the last one. At the end, and every N steps with `--export_steps N`, `output_dir/pipeline` is a complete
AIMPipeline with the averaged weights, the training curve and a first card; `output_dir/training.json` holds the
metrics, the command, the commit and the hardware. With `--lora_rank`, `output_dir/adapter` holds the adapter in PEFT's
format and the processor of these latents, and the pipeline has both.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.hf_argparser import HfArg

from ..model.presets import PRESETS
from ..utils.checks import check_choice, check_path, check_whole, naming
from ..utils.files import read_json, write_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from transformers import PreTrainedModel, TrainerCallback

    from .. import AIMProcessor
    from ..training.arguments import AIMTrainingArguments
    from ..training.trainer import AIMTrainer


@dataclass
class TrainArguments:
    latents: str = HfArg(help="folder of latents")
    policy: str = HfArg(
        help="checkpoint to start from: its codec, text encoder and, without --preset, its model; of a stage 2 "
        "checkpoint, the model as stage 1 left it, but with --lora_rank the one that stage 2 made"
    )
    preset: str | None = HfArg(default=None, help=f"train a new model of this size: {', '.join(sorted(PRESETS))}")
    config: str = HfArg(
        default="{}", help="JSON object of AIMConfig fields that override the preset's or the policy's"
    )
    lora_rank: int | None = HfArg(
        default=None, help="train LoRA of this rank on the video expert, and the action head and experts in full"
    )
    window_chunks: int = HfArg(default=3, help="K, chunks in a training window")
    held_out: int | None = HfArg(
        default=None,
        help="episodes held out of training, evenly spread over the dataset; default: one in 20, at most 48",
    )
    balance_tasks: bool = HfArg(
        default=False,
        help="repeat the windows of tasks that have few: those of a task with a 1/r² of the largest task's, r times",
    )
    compile_blocks: bool = HfArg(default=False, help="torch.compile the layers; needs a C++ compiler")
    export_steps: int = HfArg(default=0, help="steps between two exports of the pipeline; 0: one at the end")


def main(argv: list[str]) -> None:
    arguments, training_arguments, config_fields = parse(argv)

    from accelerate.utils import set_seed

    from ..data.latent_windows import LatentWindows
    from ..data.latents import INDEX, MEND
    from ..model.checkpoint import fingerprint, local_folder
    from ..pipeline.codec import VideoCodec
    from ..pipeline.loading import load_vae
    from ..training.checkpoints import claim_run
    from ..training.samples import SampleCallback
    from ..training.trainer import AIMTrainer

    read_json(Path(arguments.latents) / INDEX, MEND)  # reports missing latents before anything else is loaded
    set_seed(training_arguments.seed)
    policy = local_folder(arguments.policy)
    model = model_to_train(arguments, policy, config_fields, training_arguments.bf16)
    train = LatentWindows(
        arguments.latents,
        model.config,
        arguments.window_chunks,
        held_out=arguments.held_out,
        balance_tasks=arguments.balance_tasks,
    )
    held_out = LatentWindows(
        arguments.latents, model.config, 1, held_out=arguments.held_out, only_held_out=True, first_only=True
    )
    vae = load_vae(policy)
    codec = VideoCodec(vae)
    train.check_codec(codec)
    train.check_text_encoder(fingerprint(policy / "text_encoder"))
    output = Path(training_arguments.output_dir)
    settings = {
        "latents": train.fingerprint(),
        "model": {
            name: value for name, value in model.config.to_diff_dict().items() if name != "transformers_version"
        },
        "begins_with": None if arguments.preset else fingerprint(policy / "model"),
        **{name: getattr(arguments, name) for name in ("window_chunks", "held_out", "balance_tasks", "lora_rank")},
    }
    is_first = training_arguments.process_index == 0
    if is_first:
        print(train.summary())

    trainer = AIMTrainer(model=model, args=training_arguments, train_dataset=train)
    # Not before the trainer has checked its settings: once corrected, they may have the same folder.
    resume = claim_run(training_arguments, settings)
    if resume and is_first:
        print(f"Going on from {resume}")
    # Each process draws its own noise. numpy takes seeds below 2^32 alone.
    set_seed((training_arguments.seed + training_arguments.process_index) % 2**32)
    trainer.add_callback(SampleCallback(trainer, held_out, codec, output / "samples"))
    exporter = Exporter(trainer, model, policy, vae, train.processor, has_adapter=bool(arguments.lora_rank))
    if arguments.export_steps:
        trainer.add_callback(exporter.callback(arguments.export_steps))
    trainer.train(resume_from_checkpoint=resume)
    exporter.export()
    if is_first:
        print(f"The pipeline with the averaged weights is {output / 'pipeline'}")


def parse(argv: list[str]) -> tuple[TrainArguments, AIMTrainingArguments, dict[str, Any]]:
    """The options, checked, and the `AIMConfig` fields of `--config`.

    Raises:
        ValueError: for a value out of range, an unknown preset, or fields that `AIMConfig` refuses.
    """
    from transformers import HfArgumentParser

    from ..training.arguments import AIMTrainingArguments
    from ..utils.versions import with_installed_names

    parser = HfArgumentParser((TrainArguments, AIMTrainingArguments), prog="aim-hf train", description=__doc__)
    arguments, training_arguments = parser.parse_args_into_dataclasses(with_installed_names(argv))
    max_steps, num_train_epochs = training_arguments.max_steps, training_arguments.num_train_epochs
    if max_steps == 0 or (max_steps < 0 and num_train_epochs <= 0):
        raise ValueError(f"--max_steps is {max_steps} and --num_train_epochs {num_train_epochs}; expected some.")
    for name, least in (("lora_rank", 1), ("export_steps", 0), ("window_chunks", 1)):
        if getattr(arguments, name) is not None:
            check_whole(f"--{name}", getattr(arguments, name), least)
    if arguments.preset is not None:
        check_choice("--preset", arguments.preset, sorted(PRESETS))
        if arguments.lora_rank is not None:
            raise ValueError(
                f"--preset is {arguments.preset} and --lora_rank {arguments.lora_rank}: adapters of a new model would "
                "leave its video expert random. Leave out one of the two."
            )
    check_path("--latents", arguments.latents)

    from .. import AIMConfig

    expected = "a JSON object of AIMConfig fields, such as '{\"num_layers\": 2}'"
    with naming(f"--config is {arguments.config!r}; expected {expected}"):
        config_fields = json.loads(arguments.config)
        if not isinstance(config_fields, dict):
            raise ValueError(f"it is a JSON {type(config_fields).__name__}.")
        if unknown := sorted(config_fields.keys() - AIMConfig().to_dict().keys()):
            raise ValueError(f"AIMConfig has no {', '.join(unknown)}; see its docstring for its fields.")
        AIMConfig(**config_fields)
    return arguments, training_arguments, config_fields


def model_to_train(
    arguments: TrainArguments, policy: Path, config_fields: dict[str, Any], bf16: bool
) -> PreTrainedModel:
    """The model of `--preset` or of the checkpoint `policy`, compiled and with LoRA adapters if asked for. With
    `bf16`, weights that LoRA doesn't train are stored in bfloat16.

    Raises:
        ValueError: without `--preset`, if the checkpoint has no model.
    """
    from .. import AIMConfig, AIMForWorldAction
    from ..data.latents import stored_processor
    from ..training.initial_model import initial_model

    action_dim = stored_processor(Path(arguments.latents)).action_dim
    config_fields = {"action_dim": action_dim} | config_fields
    if arguments.preset is not None:
        model = AIMForWorldAction(AIMConfig(**PRESETS[arguments.preset] | config_fields))
    elif (policy / "model").is_dir():
        model = initial_model(policy / "model", config_fields, adapters=bool(arguments.lora_rank))
    else:
        raise ValueError(f"{arguments.policy} holds no model to train further; give --preset to train a new one")
    if arguments.compile_blocks:
        model.compile_blocks()
    if arguments.lora_rank:
        import torch

        from ..training.lora import with_lora  # needs the extra `lora`

        model = with_lora(model, arguments.lora_rank, frozen_dtype=torch.bfloat16 if bf16 else None)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{trained / 1e6:.2f} M of {total / 1e6:.2f} M parameters are trained")
    return model


@dataclass
class Exporter:
    """Writes the averaged weights as `pipeline/` in the output folder, with `training.json` and, for LoRA, `adapter/`.

    policy: folder of the checkpoint whose text encoder the pipeline gets. has_adapter: whether `model` is a LoRA
        model, whose adapter is saved and merged.
    """

    trainer: AIMTrainer
    model: PreTrainedModel
    policy: Path
    vae: AutoencoderKLWan
    processor: AIMProcessor
    has_adapter: bool

    def export(self) -> None:
        import torch

        from .. import AIMForWorldAction, AIMPipeline
        from ..pipeline.card import write_card
        from ..pipeline.loading import load_text_encoder
        from ..pipeline.sampling import new_schedulers
        from ..training.curve import plot_training
        from ..utils.files import written_folder
        from ..utils.provenance import provenance

        trainer, config = self.trainer, self.model.config
        tensors = trainer.averaged_tensors()  # called by all processes: with FSDP each holds a part
        if not trainer.is_world_process_zero():
            return
        output = Path(trainer.args.output_dir)
        if self.has_adapter:
            with trainer.averaged_model() as averaged, written_folder(output / "adapter") as folder:
                averaged.save_pretrained(folder)
                self.processor.save_pretrained(folder / "processor")
                averaged = copy.deepcopy(averaged).float().merge_and_unload()
        else:
            with torch.device("meta"):  # new weights would be drawn from the random numbers of the training
                averaged = AIMForWorldAction(config)
            averaged.load_state_dict(tensors, assign=True)
        AIMPipeline(
            vae=self.vae,
            text_encoder=load_text_encoder(self.policy),
            processor=self.processor,
            model=averaged,
            sampling_config=trainer.args.sampling_config,
            **new_schedulers(config),
        ).save_pretrained(output / "pipeline")
        record = {"steps": trainer.state.global_step, "log_history": trainer.state.log_history}
        write_json(output / "training.json", record | provenance(trainer.args.device))
        if find_spec("matplotlib") is not None:  # an extra; without it no curve is drawn
            plot_training(trainer.state.log_history, output / "pipeline" / "training_curve.png")
        write_card(output / "pipeline", output.resolve().name, self.processor)

    def callback(self, every: int) -> TrainerCallback:
        """A callback that exports after every `every` optimizer steps."""
        from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

        exporter = self

        class Export(TrainerCallback):
            def on_step_end(
                self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
            ) -> None:
                if state.global_step % every == 0:
                    exporter.export()

        return Export()
