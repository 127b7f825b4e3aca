"""The card that a trained pipeline begins with. Its license and its results are for its owner to add."""

from pathlib import Path

from ..model.processing_aim import AIMProcessor
from ..utils.files import write_text

CARD = """---
library_name: diffusers
pipeline_tag: robotics
tags:
- aim
- world-action-model
- value-maps
---
# {name}

An [AIM](https://arxiv.org/abs/2604.11135) pipeline, trained with aim-hf. It imagines the next camera frames, marks on
them where the robot will act, and decodes the robot's actions from these value maps.

```python
from aim_hf import AIMPipeline

pipe = AIMPipeline.from_pretrained("<this folder or repo>")
session = pipe.start("what the robot should do")
out = pipe(observation, session=session)  # out.frames, out.value_maps, out.actions
```

| | |
|---|---|
| cameras, height x width | {cameras} |
| an action | {action_dim} numbers, `{action_space}` |
| actions a second | {fps} |

{curve}Its success hasn't been measured. `aim-hf evaluate` measures it in a simulator.

**Limits**: the model knows the tasks, robots, cameras and wordings of its training data and no others, and must not
drive a real robot without limits on speed, force and workspace that don't depend on it.
"""


def write_card(folder: Path, name: str, processor: AIMProcessor) -> None:
    """Writes `README.md` of a pipeline's folder, unless there is one, which may have been edited. It shows
    `training_curve.png` if that exists."""
    if (folder / "README.md").exists():
        return
    sizes = {camera: " x ".join(map(str, entry["size"])) for camera, entry in processor.cameras.items()}
    curve = "training_curve.png"
    text = CARD.format(
        name=name,
        cameras=", ".join(f"`{camera}` {size}" for camera, size in sizes.items()),
        action_dim=processor.action_dim,
        action_space=processor.action_space,
        fps="unknown" if processor.fps is None else f"{processor.fps:g}",
        curve=f"![Losses of the training]({curve})\n\n" if (folder / curve).exists() else "",
    )
    write_text(folder / "README.md", text)
