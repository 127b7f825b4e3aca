"""Plots of training runs, and of success before and after stage 2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.extras import extra
from ..utils.files import written_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRPO_PANELS = {
    "rewards, eq. (12)": (
        "reward",
        *(f"rewards/{name}_reward/mean" for name in ("value_map", "contact", "success")),
    ),
    "success, held out (95 % Wilson) and in rollouts": ("eval_success_rate", "rollout/success_rate"),
    "KL divergence from stage 1, of a random step": ("kl",),
    "share of clipped ratios": ("clip_ratio/low_mean", "clip_ratio/high_mean"),
    "landing points in the map's high region": ("rollout/value_hit",),
}
PANELS = {
    "flow-matching losses, eq. (9)": ("rgb_loss", "value_loss", "action_loss"),
    "action error of the first chunk, held out": ("sample_action_error", "sample_action_error_true_map"),
    "value map's peak within 10 % of the contact, held out": ("sample_peak_within",),
}


def plot_training(log_history: list[dict[str, Any]], path: Path) -> None:
    """Plots the log entries of a stage 1 run (`trainer.state.log_history`)."""
    figure, axes = _draw_panels(PANELS, log_history, width=5, legend_size=8)
    axes[0].set_yscale("log")
    axes[2].set_ylim(0, 1.02)
    _save(figure, path)


def plot_grpo(log_history: list[dict[str, Any]], path: Path) -> None:
    """Plots the log entries of a GRPO run: rewards, success, divergence, clipping and value hits over the steps."""
    figure, axes = _draw_panels(GRPO_PANELS, log_history, width=4.4, legend_size=7)
    names = ("step", "eval_success_low", "eval_success_high")
    bands = [[entry[name] for name in names] for entry in log_history if names[1] in entry]
    if bands:
        axes[1].fill_between(*zip(*bands), alpha=0.2)
    axes[1].set_ylim(0, 1.02)
    _save(figure, path)


def plot_comparison(comparison: dict[str, Any], path: Path) -> None:
    """Plots success before and after of each task, from the result of [`compare`]."""
    tasks = comparison["tasks"]
    figure, axis = _figure(1, 1.6 + 1.3 * len(tasks))
    for offset, side in ((-0.2, "before"), (0.2, "after")):
        rates = [task[side]["rate"] for task in tasks.values()]
        bounds = [task[side]["wilson"] for task in tasks.values()]
        errors = [
            [rate - low for rate, (low, _) in zip(rates, bounds)],
            [high - rate for rate, (_, high) in zip(rates, bounds)],
        ]
        axis.bar([i + offset for i in range(len(tasks))], rates, 0.38, label=side, yerr=errors, capsize=3)
    axis.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right", fontsize=8)
    axis.set_ylim(0, 1.05)
    axis.set_title(f"{comparison['gain_points']:+.1f} points, McNemar p = {comparison['mcnemar_p']:.2g}", fontsize=9)
    axis.legend(fontsize=8)
    _save(figure, path)


def _draw_panels(
    panels: dict[str, tuple[str, ...]], log_history: list[dict[str, Any]], width: float, legend_size: float
) -> tuple[Figure, np.ndarray]:
    """A figure with one panel per title, which plots the logged values of its names; evaluations have markers."""
    figure, axes = _figure(len(panels), width * len(panels))
    for axis, (title, names) in zip(axes, panels.items()):
        for name in names:
            logged = [(entry["step"], entry[name]) for entry in log_history if name in entry]
            if logged:
                axis.plot(*zip(*logged), label=name, linewidth=1.2, marker="o" if name.startswith("eval") else None)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=legend_size)
    return figure, axes


def _figure(panels: int, width: float) -> tuple[Figure, np.ndarray | Axes]:
    """A figure and its axes. matplotlib is imported here, since training works without it."""
    with extra("plot"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, 3.6))
    return figure, figure.subplots(1, panels)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with written_file(path) as temporary:
        figure.savefig(temporary, dpi=90, format=path.suffix[1:])
