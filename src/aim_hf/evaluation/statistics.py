"""From episodes to rates: the Wilson interval, a paired test, and results.json."""

import json
import math
from typing import Any

NEAR = 0.1  # of the canvas's width: a value map's peak this close to the true contact counts as on it


def wilson_interval(successes: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a rate; 95 % with the default `z`.

    Raises:
        ValueError: unless 0 <= successes <= episodes and episodes >= 1.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise ValueError(f"{successes} successes of {episodes} episodes; expected 0 <= successes <= episodes >= 1.")
    rate, share = successes / episodes, z * z / episodes
    middle = (rate + share / 2) / (1 + share)
    reach = z / (1 + share) * math.sqrt(rate * (1 - rate) / episodes + share / (4 * episodes))
    # Exact at the ends, where rounding would leave the bound on the wrong side of the rate.
    low = 0.0 if successes == 0 else max(0.0, middle - reach)
    return low, 1.0 if successes == episodes else min(1.0, middle + reach)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p for paired outcomes, of the pairs in which only one of the two succeeded."""
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def format_rate(task: dict[str, Any]) -> str:
    """A task of `results.json` in a table: rate, counts, and the interval in percent."""
    low, high = (round(100 * bound) for bound in task["wilson"])
    return f"{task['rate']:.0%} ({task['successes']}/{task['episodes']}; {low} to {high})"


def summarize(
    records: dict[str, list[dict[str, Any]]], rejected: dict[str, dict[int, str]], camera: str = "head_camera"
) -> dict[str, Any]:
    """Rates of each task, and over all.

    Args:
        records: task -> its episodes' records, as `evaluate` writes them; at least one of each task.
        rejected: task -> the seeds that the suite rejected, and why.
        camera: whose value map the peak errors are of.

    Returns:
        `mean_rate`, the mean of the tasks' rates; `first_chunk_peak_within_10_percent`; `tasks`, name -> episodes,
        successes, rate, wilson, mean_steps, expert_successes, peaks, seeds and rejected_seeds; `simulators`, all that
        took part.
    """
    tasks = {}
    for task, episodes in records.items():
        episodes = sorted(episodes, key=lambda record: record["seed"])
        successes = sum(record["success"] for record in episodes)
        tasks[task] = {
            "episodes": len(episodes),
            "successes": successes,
            "rate": successes / len(episodes),
            "wilson": list(wilson_interval(successes, len(episodes))),
            "mean_steps": sum(record["steps"] for record in episodes) / len(episodes),
            "expert_successes": sum(record["expert_success"] for record in episodes),
            "first_chunk_peak_within_10_percent": _peaks(episodes, camera),
            "seeds": [record["seed"] for record in episodes],
            "rejected_seeds": sorted(rejected[task]),
        }
    simulators = {json.dumps(record["simulator"]) for episodes in records.values() for record in episodes}
    return {
        "mean_rate": sum(task["rate"] for task in tasks.values()) / len(tasks),
        "first_chunk_peak_within_10_percent": _peaks([r for task in records.values() for r in task], camera),
        "simulators": [json.loads(simulator) for simulator in sorted(simulators)],
        "tasks": tasks,
    }


def _peaks(episodes: list[dict[str, Any]], camera: str) -> dict[str, Any]:
    """Of the episodes in which the camera sees the true contact: the share whose peak is near it, and their count."""
    errors = [record["peak_error"][camera] for record in episodes if record["peak_error"] is not None]
    errors = [error for error in errors if error is not None]
    return {"share": sum(error <= NEAR for error in errors) / len(errors) if errors else None, "count": len(errors)}
