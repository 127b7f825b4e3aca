"""Makes the tiny VAE from episodes, `vae/` of the checkpoint: computes its encoder and trains its decoder.

    aim-hf train-vae --dataset runs/episodes --policy runs/base --output_dir runs/vae

The checkpoint needs `processor/`, made by `aim-hf train-text-encoder`. `vae/` is written as soon as its encoder is
computed, so that `aim-hf encode-latents` and the training of the world-action model need not wait for the decoder.
A run that finds a checkpoint in its output folder resumes from it. It also writes `log.jsonl` and `samples/` there:
held-out canvases and value maps above their reconstructions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..tiny.vae_arguments import VAETrainingArguments, check_canvas
from ..utils.files import written_folder
from . import Parser, check_options
from .policy_options import add_options, given_options

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


def main(argv: list[str]) -> None:
    parser = Parser("train-vae", __doc__)
    parser.add_argument("--dataset", required=True, help="folder or repo id of episodes")
    parser.add_argument(
        "--policy", type=Path, required=True, help="checkpoint folder that has processor/ and gets vae/"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the run: checkpoint, log, samples")
    parser.add_argument(
        "--max_episodes", type=int, default=1000, help="episodes held in memory, evenly spread over the dataset"
    )
    parser.add_argument(
        "--held_out", type=int, help="episodes of these held out of training; default: one in 20, at most 48"
    )
    add_options(parser, "training", VAETrainingArguments)
    args = parser.parse_args(argv)
    check_options(args, "max_episodes")
    check_options(args, "held_out", least=0)
    training = VAETrainingArguments(**given_options(args, VAETrainingArguments))

    import torch
    from accelerate import PartialState

    from .. import AIMProcessor
    from ..data.latent_windows import held_out_count
    from ..data.shards import load_episodes
    from ..pipeline.loading import load_vae
    from ..tiny.vae import VAETrainer, canvas_episodes, set_encoder, tiny_vae

    state = PartialState(cpu=not torch.cuda.is_available())

    processor = AIMProcessor.from_pretrained(args.policy / "processor")
    if not (args.policy / "vae").is_dir():
        check_canvas(processor.canvas_size)
    dataset = load_episodes(args.dataset)
    count = min(args.max_episodes, len(dataset))
    held_out = held_out_count(count, args.held_out)
    if state.is_main_process:
        print(f"training on {count - held_out} of {len(dataset)} episodes ({held_out} held out)")
    dataset = dataset.select([i * len(dataset) // count for i in range(count)]).shuffle(seed=training.seed)
    episodes = canvas_episodes(dataset, processor)

    torch.manual_seed(training.seed)
    if state.is_main_process and not (args.policy / "vae").is_dir():
        vae = tiny_vae()
        set_encoder(vae, episodes[held_out:], training.frame_stride, training.seed)
        export(vae, args.policy)
    elif state.is_main_process:
        print(f"{args.policy / 'vae'} is there: its encoder stays as it is, and its decoder is trained further")
    state.wait_for_everyone()
    vae = load_vae(args.policy)
    trainer = VAETrainer(vae, episodes[held_out:], episodes[:held_out], training, args.output_dir)
    metrics = trainer.train()
    if state.is_main_process:
        export(trainer.vae, args.policy)
        print(", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))


def export(vae: AutoencoderKLWan, base: Path) -> None:
    with written_folder(base / "vae") as folder:
        vae.save_pretrained(folder)
