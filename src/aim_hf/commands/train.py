"""Stage 1: trains AIM by flow matching (eq. 9) on latents made by `aim-hf encode-latents`.

    accelerate launch -m aim_hf train --latents runs/latents --policy runs/base --preset tiny --output_dir runs/aim \
        --max_steps 8000 --per_device_train_batch_size 8 --muon_learning_rate 0.03

`--policy` is the checkpoint that gives the video codec and the text encoder. Its model is trained further; with
`--preset` a new one of that size is trained from nothing.

Every option of transformers' `TrainingArguments` works. A run that finds checkpoints in its output folder continues
from the last one. At the end (and with `--export_steps N` every N steps) `output_dir/pipeline` is a whole AIMPipeline
with the averaged weights and the training curve; `output_dir/training.json` holds the numbers, the command, the
commit and the hardware. With `--lora_rank`, `output_dir/adapter` holds what was trained, in PEFT's format, and the
pipeline has it merged.
"""

import copy
import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..model.presets import PRESETS
from ..utils.checks import check_whole
from ..utils.files import claim, read_json, write_text


@dataclass
class TrainArguments:
    latents: str = field(metadata={"help": "folder of latents"})
    policy: str = field(
        metadata={
            "help": "checkpoint to start from: its codec, its text encoder and, without --preset, its model; after "
            "stage 2, what stage 1 left of that"
        }
    )
    preset: str | None = field(
        default=None, metadata={"help": f"train a new model of this size: {', '.join(sorted(PRESETS))}"}
    )
    config: str = field(
        default="{}", metadata={"help": "JSON of AIMConfig fields that differ from the preset's, or the policy's"}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "train LoRA of this rank on the video stream, and all of the action head"}
    )
    window_chunks: int = field(default=3, metadata={"help": "K, chunks in a training window"})
    held_out: int | None = field(
        default=None,
        metadata={
            "help": "episodes, spread over the set, that training never sees; one in 20, at most 48, if not given"
        },
    )
    compile_blocks: bool = field(default=False, metadata={"help": "torch.compile the layers; needs a C++ compiler"})
    export_steps: int = field(default=0, metadata={"help": "steps between two exports of the pipeline"})


def main(argv: list[str]) -> None:
    from transformers import HfArgumentParser

    from ..training.arguments import AIMTrainingArguments

    parser = HfArgumentParser((TrainArguments, AIMTrainingArguments), prog="aim-hf train", description=__doc__)
    own, args = parser.parse_args_into_dataclasses(argv)
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        raise ValueError(
            f"--max_steps is {args.max_steps} and --num_train_epochs {args.num_train_epochs}; expected some."
        )
    for name, least in (("lora_rank", 1), ("export_steps", 0), ("window_chunks", 1)):
        if getattr(own, name) is not None:
            check_whole(f"--{name}", getattr(own, name), least)
    if own.preset is not None and own.preset not in PRESETS:
        raise ValueError(f"--preset is {own.preset!r}; expected one of {', '.join(sorted(PRESETS))}")
    try:
        changed = json.loads(own.config)
    except ValueError as error:
        raise ValueError(f"--config is {own.config!r}; expected a JSON object of AIMConfig fields") from error

    from accelerate.utils import set_seed
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers import TrainerCallback

    from .. import AIMConfig, AIMForWorldAction, AIMPipeline, AIMProcessor
    from ..data.latents import INDEX, MEND, LatentWindows
    from ..model.checkpoint import fingerprint, local_folder
    from ..pipeline.codec import VideoCodec
    from ..pipeline.loading import load_text_encoder, load_vae
    from ..training.checkpoints import checkpoint_to_resume
    from ..training.curve import plot_training
    from ..training.initial_model import initial_model
    from ..training.samples import SampleCallback
    from ..training.trainer import AIMTrainer
    from ..utils.provenance import provenance

    read_json(Path(own.latents) / INDEX, MEND)  # said before anything else is looked for
    set_seed(args.seed)
    policy = local_folder(own.policy)
    fields = {"action_dim": AIMProcessor.from_pretrained(Path(own.latents) / "processor").action_dim}
    if not isinstance(changed, dict) or changed.keys() - AIMConfig().to_dict().keys():
        raise ValueError(f"--config is {own.config!r}; expected a JSON object of AIMConfig fields")
    fields |= changed
    if own.preset is not None:
        model = AIMForWorldAction(AIMConfig(**PRESETS[own.preset] | fields))
    elif (policy / "model").is_dir():
        model = initial_model(policy / "model", fields, adapters=bool(own.lora_rank))
    else:
        raise ValueError(f"{own.policy} holds no model to train further; give --preset to train a new one")
    if own.compile_blocks:
        model.compile_blocks()
    if own.lora_rank:
        from ..training.lora import with_lora  # an extra

        model = with_lora(model, own.lora_rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trained / 1e6:.2f} M of {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters are trained")

    train = LatentWindows(own.latents, model.config, own.window_chunks, held_out=own.held_out)
    held_out = LatentWindows(own.latents, model.config, 1, held_out=own.held_out, only_held_out=True, first_only=True)
    processor = train.processor
    vae = load_vae(policy)
    codec = VideoCodec(vae)
    train.check_codec(codec)
    train.check_text_encoder(fingerprint(policy / "text_encoder"))
    output = Path(args.output_dir)
    settings = {
        "latents": train.fingerprint(),
        "model": {k: v for k, v in model.config.to_diff_dict().items() if k != "transformers_version"},
        "begins_with": None if own.preset else fingerprint(policy / "model"),
        **{name: getattr(own, name) for name in ("window_chunks", "held_out", "lora_rank")},
    }
    with args.main_process_first():
        claim(output, args.made_from() | settings, outputs="checkpoint-*")
    resume = checkpoint_to_resume(output, args.resume_from_checkpoint)
    if args.process_index == 0:
        print(train.summary())

    trainer = AIMTrainer(model=model, args=args, train_dataset=train)
    set_seed(args.seed, device_specific=True)  # each process draws noise of its own
    trainer.add_callback(SampleCallback(trainer, held_out, codec, output / "samples"))

    def export():
        tensors = trainer.averaged_tensors()  # all processes: FSDP has each hold a part
        if not trainer.is_world_process_zero():
            return
        if own.lora_rank:
            with trainer.averaged_model() as averaged:
                averaged.save_pretrained(output / "adapter")
                averaged = copy.deepcopy(averaged).merge_and_unload()
        else:
            averaged = AIMForWorldAction(model.config)
            averaged.load_state_dict(tensors)
        AIMPipeline(
            vae=vae,
            text_encoder=load_text_encoder(policy),
            processor=processor,
            model=averaged,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=model.config.video_shift),
            action_scheduler=FlowMatchEulerDiscreteScheduler(shift=model.config.action_shift),
        ).save_pretrained(output / "pipeline")
        record = {"steps": trainer.state.global_step, "log_history": trainer.state.log_history}
        write_text(output / "training.json", json.dumps(record | provenance(args.device), indent=1) + "\n")
        if find_spec("matplotlib") is not None:  # an extra; without it there is no picture
            plot_training(trainer.state.log_history, output / "pipeline" / "training_curve.png")

    class Export(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if own.export_steps and state.global_step % own.export_steps == 0:
                export()

    trainer.add_callback(Export())
    trainer.train(resume_from_checkpoint=resume)
    export()
