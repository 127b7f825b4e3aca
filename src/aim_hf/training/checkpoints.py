"""Checkpoints of the trainers: additional files, checks for completeness, and the choice of one to resume from."""

import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..utils.files import MADE_FROM, UnreadableFile, claim, differences, give_usual_mode, read_json, reading, writing
from .arguments import ResumableArguments

STATE = "trainer_state.json"
MEND = "delete this checkpoint, and the run goes on from the one before it"


class CheckpointedTrainer(Trainer):
    """A Trainer with additional files in its checkpoints, and checks on resume.

    A checkpoint's `trainer_state.json` is written last, after every process has written its files. A checkpoint with
    this file is therefore complete.
    """

    resumed_from: Path | None = None  # checkpoint that the latest call of `train` resumed from

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # The Trainer divides the loss by this number; in transformers 5.5 accelerate would divide it a second time.
        self.accelerator.gradient_accumulation_steps = 1
        self.add_callback(_Begin(self))

    def begin(self) -> None:
        """Sets what a run begins with, afresh or from `resumed_from`. Called in every process by each call of `train`,
        after the Trainer has set up its model and `state`."""
        raise NotImplementedError

    def save_to_checkpoint(self, folder: Path) -> None:
        """Writes the additional files of this trainer. Called in every process."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`. Raises UnreadableFile for an incomplete checkpoint, or one with a damaged file."""
        self.resumed_from = None
        if resume_from_checkpoint:
            resume_from_checkpoint = checkpoint_to_resume(Path(self.args.output_dir), resume_from_checkpoint)
            # FSDP and DeepSpeed shard the optimizer, and save it in a folder of its own.
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            check_checkpoint(
                Path(resume_from_checkpoint), ("scheduler.pt",) if sharded else ("scheduler.pt", "optimizer.pt")
            )
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, **kwargs: Any) -> None:
        """Takes no step if all are done: the Trainer compares their number with `max_steps` only after a step."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with writing(folder, RuntimeError):  # of torch.save, on a full disk
            folder.mkdir(parents=True, exist_ok=True)
            if self.args.should_save:
                (folder / STATE).unlink(missing_ok=True)  # a rewritten checkpoint isn't complete until the end
            self.save_to_checkpoint(folder)
            super()._save_checkpoint(model, trial)
            give_usual_mode(folder.glob("*.safetensors"))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.resumed_from = Path(resume_from_checkpoint)


class _Begin(TrainerCallback):
    def __init__(self, trainer: CheckpointedTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin()


def claim_run(args: ResumableArguments, settings: dict[str, Any]) -> str | None:
    """Claims the output folder of a run. Returns the checkpoint to resume it from, if any: `checkpoint_to_resume`.

    Args:
        settings: all that the learned weights depend on besides `args`.

    Raises:
        FileExistsError: if the output folder has a run of other settings, which it names.
        ValueError: if the checkpoint is of a run of other settings: it would go on with that one's learning rate.
        UnreadableFile: as `checkpoint_to_resume`; without a record of the checkpoint's run.
    """
    output, made_from = Path(args.output_dir), args.made_from() | settings
    resume = checkpoint_to_resume(output, args.resume_from_checkpoint)
    if resume is not None and (run := Path(resume).resolve().parent) != output.resolve():
        mend = f"copy it there from the run that made {resume}: a run goes on with the same settings alone"
        if told := differences(run / MADE_FROM, made_from, mend):
            raise ValueError(
                f"{resume} is of a run that was made from something else: {told}. Give the same settings to go on "
                "with it, or leave out --resume_from_checkpoint to begin anew."
            )
    with args.main_process_first():
        claim(output, made_from, "checkpoint-*", "pipeline", "adapter")
    return resume


def checkpoint_to_resume(output_dir: Path, given: str | bool | None) -> str | None:
    """The checkpoint to resume a run from.

    Args:
        given: `resume_from_checkpoint`: a folder; True for the newest complete checkpoint in `output_dir`; None for
            that one if it exists.

    Raises:
        UnreadableFile: if the folder is missing or incomplete, or for True if there is no complete checkpoint.
    """
    if given not in (None, True, "True", "true"):
        check_checkpoint(Path(given))
        return str(given)
    found = last_checkpoint(output_dir)
    if found is None and given is not None:
        raise UnreadableFile(
            f"{output_dir} holds no complete checkpoint to go on from; leave out --resume_from_checkpoint to begin "
            "anew."
        )
    return found


def check_checkpoint(folder: Path, names: tuple[str, ...] = ()) -> None:
    """Raises UnreadableFile, naming the file, if one of `names` is missing, or any file is truncated; and for a
    checkpoint of a model alone."""
    read_json(folder / STATE, f"{folder} is no complete checkpoint; choose another")
    if not any(path.name.startswith(("rng_state", "scheduler.")) for path in folder.glob("*")):
        raise UnreadableFile(
            f"{folder} holds no optimizer state, as --save_only_model saves it, and can't be resumed; give another "
            "checkpoint as --resume_from_checkpoint, or another --output_dir to begin anew."
        )
    for path in (*(folder / name for name in names), *sorted(folder.glob("*"))):
        with reading(path, MEND):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.suffix in (".pt", ".pth"):
                with open(path, "rb") as file:
                    damaged = "all of it" if not zipfile.is_zipfile(file) else zipfile.ZipFile(file).testzip()
                if damaged:
                    raise ValueError(f"{damaged} is damaged")


def last_checkpoint(output_dir: Path) -> str | None:
    """The newest complete checkpoint of a run; None if there is none."""
    names = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("*"))
    for _, path in sorted(((int(match[1]), path) for match, path in names if match), reverse=True):
        with suppress(UnreadableFile):
            read_json(path / STATE, MEND)
            return str(path)
    return None
