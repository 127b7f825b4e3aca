"""The benchmark of training reads the times that LeRobot logs."""

import pytest
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
from lerobot_training import step_seconds


def test_a_step_takes_the_time_that_lerobot_logs():
    meters = {"loss": "loss", "update_s": "updt_s", "dataloading_s": "data_s"}
    log = []
    for update, data in ((1.25, 0.5), (0.75, 0.125)):
        tracker = MetricsTracker(2, 100, 3, {name: AverageMeter(label, ":.3f") for name, label in meters.items()})
        tracker.update_s, tracker.dataloading_s = update, data
        log += [f"INFO 2026-01-01 12:00:00 ot_train.py:641 {tracker}", "INFO 2026-01-01 12:00:01 End of training"]
    assert step_seconds("\n".join(log)) == pytest.approx([1.75, 0.875])
