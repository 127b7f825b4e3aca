"""How a policy executes its plans, in a module without torch, so that the command line can parse it quickly."""

from dataclasses import asdict, dataclass
from typing import Any

from ..utils.checks import check_number, check_whole


@dataclass(frozen=True)
class ExecutionConfig:
    """How the plans of an [`AIMPolicy`] are executed.

    delay: inference delay in control steps. Meanwhile the robot executes the rest of the last plan and its lookahead,
        so the first `delay` actions of each plan but the first come from the plan before.
    real_time_chunking: whether a new plan is conditioned on these actions, so that it continues them.
    n_action_steps: actions of a plan that are executed before the next plan, in whole frames; the whole chunk if not
        given.
    replan_drift: plan again as soon as an observed picture differs from the imagined one by more than this, 0 to 1,
        see `frame_drift`.
    replan_entropy: plan again as soon as the next value map's entropy is above this, 0 to 1, see `map_entropy`.

    A new plan never begins before the last one, which it continues, has arrived, `delay` control steps after it began.

    Raises:
        ValueError: for numbers out of range.
    """

    delay: int = 0
    real_time_chunking: bool = True
    n_action_steps: int | None = None
    replan_drift: float | None = None
    replan_entropy: float | None = None

    def __post_init__(self):
        check_whole("delay", self.delay, least=0)
        if self.n_action_steps is not None:
            check_whole("n_action_steps", self.n_action_steps)
        for name in ("replan_drift", "replan_entropy"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, 1)

    @property
    def is_adaptive(self) -> bool:
        """Whether rows plan again by signals, which are looked at after every frame."""
        return self.replan_drift is not None or self.replan_entropy is not None

    def settings(self) -> dict[str, Any]:
        """The fields that have an effect, for the settings of a policy."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if not self.delay:
            del given["real_time_chunking"]
        return given
