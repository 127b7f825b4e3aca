"""Checkpoints that are whole, and hold what our trainers need besides what the Trainer saves."""

import json
import re
from pathlib import Path

from transformers import Trainer


class CheckpointedTrainer(Trainer):
    """Saves and restores more than the Trainer does. A checkpoint's `trainer_state.json` is written last, once every
    process has written its part: so a checkpoint that has it is whole."""

    resumed_from: Path | None = None  # the checkpoint that this run goes on from

    def save_to_checkpoint(self, folder: Path) -> None:
        """Writes what else this trainer goes on from. Called in every process."""
        raise NotImplementedError

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        self.save_to_checkpoint(folder)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.resumed_from = Path(resume_from_checkpoint)


def last_checkpoint(output_dir: Path) -> str | None:
    """The newest whole checkpoint of a run; one that a kill left half-written is passed over."""
    found = [(int(match[1]), path) for path in output_dir.glob("*") if (match := _NAME.fullmatch(path.name))]
    return next((str(path) for _, path in sorted(found, reverse=True) if _is_whole(path)), None)


_NAME = re.compile(r"checkpoint-(\d+)")


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True
