"""Checkpoints that are whole, and hold what our trainers need besides what the Trainer saves."""

import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import Trainer

from ..utils.files import UnreadableFile, read_json, reading

STATE = "trainer_state.json"
MEND = "delete this checkpoint, and the run goes on from the one before it"


class CheckpointedTrainer(Trainer):
    """Saves and restores more than the Trainer does. A checkpoint's `trainer_state.json` is written last, once every
    process has written its part: so a checkpoint that has it is whole."""

    resumed_from: Path | None = None  # the checkpoint that this run goes on from

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The Trainer divides a batch's loss by their number itself; transformers 5.5 has accelerate divide it again.
        self.accelerator.gradient_accumulation_steps = 1

    def save_to_checkpoint(self, folder: Path) -> None:
        """Writes what else this trainer goes on from. Called in every process."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As the Trainer's. Raises UnreadableFile for a checkpoint that lacks something, or holds a damaged file."""
        if resume_from_checkpoint:
            resume_from_checkpoint = checkpoint_to_resume(Path(self.args.output_dir), resume_from_checkpoint)
            split = self.is_fsdp_enabled or self.is_deepspeed_enabled  # the optimizer is, in a folder of its own
            check_checkpoint(
                Path(resume_from_checkpoint), ("scheduler.pt",) if split else ("scheduler.pt", "optimizer.pt")
            )
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.save_to_checkpoint(folder)
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError on a full disk
            raise OSError(
                f"{folder} could not be written ({error}); the checkpoints before it are whole. Make room, then run "
                "the same command again."
            ) from error

    def _save_rng_state(self, output_dir) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.resumed_from = Path(resume_from_checkpoint)


def checkpoint_to_resume(output_dir: Path, given: str | bool | None) -> str | None:
    """The checkpoint that a run goes on from.

    Args:
        given: `resume_from_checkpoint`: a folder; True for the newest whole one of `output_dir`; None for that if
            there is one.

    Raises:
        UnreadableFile: if the folder isn't there or isn't whole, or there is none.
    """
    if given not in (None, True, "True", "true"):
        check_checkpoint(Path(given))
        return str(given)
    found = last_checkpoint(output_dir)
    if found is None and given is not None:
        raise UnreadableFile(
            f"{output_dir} holds no whole checkpoint to go on from; leave out --resume_from_checkpoint to begin anew."
        )
    return found


def check_checkpoint(folder: Path, names: tuple[str, ...] = ()) -> None:
    """Raises UnreadableFile, which names the file, if one of `names` is missing, or any is cut short."""
    read_json(folder / STATE, f"{folder} is no whole checkpoint; choose another")
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
    """The newest whole checkpoint of a run; one that a kill left half-written is passed over."""
    found = [(int(match[1]), path) for path in output_dir.glob("*") if (match := _NAME.fullmatch(path.name))]
    return next((str(path) for _, path in sorted(found, reverse=True) if _is_whole(path)), None)


_NAME = re.compile(r"checkpoint-(\d+)")


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_json(checkpoint / STATE, MEND)
    except UnreadableFile:
        return False
    return True
