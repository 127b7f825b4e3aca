"""Stage 1: trains AIM by flow matching (eq. 9) on latents made by `dataset_scripts/encode_latents.py`.

    accelerate launch pipelines/train.py --latents runs/latents --base runs/base --preset tiny --output_dir runs/aim \
        --max_steps 8000 --per_device_train_batch_size 8 --muon_learning_rate 0.03

Every option of transformers' `TrainingArguments` works. A run that finds checkpoints in its output folder continues
from the last one. At the end (and with `--export_steps N` every N steps) `output_dir/pipeline` is a whole AIMPipeline
with the averaged weights and the training curve; `output_dir/training.json` holds the numbers, the command, the
commit and the hardware. With `--lora_rank`, `output_dir/adapter` holds what was trained, in PEFT's format, and the
pipeline has it merged.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import set_seed
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import AutoModelForTextEncoding, HfArgumentParser, TrainerCallback

from aim_hf import AIMForWorldAction, AIMPipeline, AIMProcessor
from aim_hf.codec import VideoCodec
from aim_hf.configuration_aim import PRESETS
from aim_hf.data.latents import LatentWindows
from aim_hf.files import write_text
from aim_hf.provenance import provenance
from aim_hf.training.checkpoints import last_checkpoint
from aim_hf.training.curve import plot_training
from aim_hf.training.lora import with_lora
from aim_hf.training.samples import SampleCallback
from aim_hf.training.trainer import AIMTrainer, AIMTrainingArguments


@dataclass
class TrainArguments:
    latents: str = field(metadata={"help": "folder of latents"})
    base: str = field(metadata={"help": "folder with vae/ and text_encoder/"})
    preset: str = field(default="tiny", metadata={"help": f"model size: {', '.join(sorted(PRESETS))}"})
    config: str = field(
        default="{}", metadata={"help": "JSON of AIMConfig fields that differ from the preset, or --init"}
    )
    init: str | None = field(
        default=None,
        metadata={"help": "model folder to start from, instead of new weights; after stage 2, from what stage 1 left"},
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "train LoRA of this rank on the video stream, and all of the action head"}
    )
    window_chunks: int = field(default=3, metadata={"help": "K, chunks in a training window"})
    held_out: int = field(default=48, metadata={"help": "episodes, spread over the set, that training never sees"})
    compile_blocks: bool = field(default=False, metadata={"help": "torch.compile the layers; needs a C++ compiler"})
    export_steps: int = field(default=0, metadata={"help": "steps between two exports of the pipeline"})


def initial_model(folder: str, fields: dict, adapters: bool) -> AIMForWorldAction:
    """The model in `folder`, in float32 (updates vanish in less), with other `fields` of its config. For a robot with
    another number of joints, the layers at both ends of the action head are new. Of a model after stage 2, stage 1
    goes on with the head that it left; with `adapters`, which have to fit the folder's model, both heads stay.

    Raises:
        ValueError: if other tensors don't fit.
    """
    model, report = AIMForWorldAction.from_pretrained(
        folder, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, **fields
    )
    new = sorted(key for key, *_ in report["mismatched_keys"])
    trained = ("action_head",) if adapters else ("action_head", "history_head")
    ends = tuple(f"{head}.{layer}." for head in trained for layer in ("action_embedder", "proj_out"))
    wrong = [key for key in new if not key.startswith(ends)]
    if wrong:
        raise ValueError(f"{folder} does not fit --config {fields}: {', '.join(wrong)} have other sizes")
    if new:
        print(f"{folder} was trained on other actions; new: {', '.join(new)}")
    if not adapters:
        model.join_history_head()
    return model


def main():
    own, args = HfArgumentParser((TrainArguments, AIMTrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    fields = {"action_dim": AIMProcessor.from_pretrained(Path(own.latents) / "processor").action_dim}
    fields |= json.loads(own.config)
    if own.init:
        model = initial_model(own.init, fields, adapters=bool(own.lora_rank))
    else:
        config = PRESETS[own.preset]()
        model = AIMForWorldAction(type(config)(**{**config.to_diff_dict(), **fields}))
    if own.compile_blocks:
        model.compile_blocks()
    if own.lora_rank:
        model = with_lora(model, own.lora_rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trained / 1e6:.2f} M of {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters are trained")

    train = LatentWindows(own.latents, model.config, own.window_chunks, held_out=own.held_out)
    held_out = LatentWindows(own.latents, model.config, 1, held_out=own.held_out, only_held_out=True, first_only=True)
    processor = train.processor
    vae = AutoencoderKLWan.from_pretrained(Path(own.base) / "vae")
    codec = VideoCodec(vae)

    trainer = AIMTrainer(model=model, args=args, train_dataset=train)
    set_seed(args.seed, device_specific=True)  # each process draws noise of its own
    batch = torch.utils.data.default_collate([held_out[i] for i in range(len(held_out))])
    titles = [f"{entry['task']}: {entry['instruction']}" for entry in held_out.entries]
    output = Path(args.output_dir)
    trainer.add_callback(SampleCallback(trainer, batch, codec, processor, output / "samples", titles))

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
            text_encoder=AutoModelForTextEncoding.from_pretrained(Path(own.base) / "text_encoder"),
            processor=processor,
            model=averaged,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=model.config.video_shift),
            action_scheduler=FlowMatchEulerDiscreteScheduler(shift=model.config.action_shift),
        ).save_pretrained(output / "pipeline")
        plot_training(trainer.state.log_history, output / "pipeline" / "training_curve.png")
        record = {"steps": trainer.state.global_step, "log_history": trainer.state.log_history}
        write_text(output / "training.json", json.dumps(record | provenance(args.device), indent=1) + "\n")

    class Export(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if own.export_steps and state.global_step % own.export_steps == 0:
                export()

    trainer.add_callback(Export())
    trainer.train(resume_from_checkpoint=last_checkpoint(output))
    export()


if __name__ == "__main__":
    main()
