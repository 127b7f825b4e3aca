"""From episodes to rates: the Wilson interval, McNemar's test, and results.json."""

import json
import math
from collections.abc import Sequence
from statistics import median
from typing import Any

NEAR = 0.1  # of the canvas's width: a value map's peak this close to the true contact counts as near it
NEAR_CM = 2.0  # about the radius of a value map's spot, and half a gripper's opening
PEAKS = "first value map's peak: within 10 % of the canvas, median distance on the table"  # heads `format_peaks`


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


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Success after against before, on the same episodes in the same order.

    Returns:
        `gain_points`, in percent of the episodes; `lost` and `won`, the number of episodes in which only `before` and
        only `after` succeeded; `p`, McNemar's exact two-sided p.

    Raises:
        ValueError: if the numbers of episodes differ.
    """
    pairs = list(zip(before, after, strict=True))
    lost = sum(first and not second for first, second in pairs)
    won = sum(second and not first for first, second in pairs)
    return {"gain_points": 100 * (won - lost) / len(pairs), "lost": lost, "won": won, "p": mcnemar_p(lost, won)}


def rate_of(successes: int, episodes: int) -> dict[str, Any]:
    """The entries `successes`, `rate` and `wilson`, its 95 % interval, of a file of results."""
    interval = wilson_interval(successes, episodes)
    return {"successes": successes, "rate": successes / episodes, "wilson": list(interval)}


def format_rate(task: dict[str, Any]) -> str:
    """A task of `results.json` in a table: rate, counts, and the interval in percent."""
    low, high = (round(100 * bound) for bound in task["wilson"])
    return f"{task['rate']:.0%} ({task['successes']}/{task['episodes']}; {low} to {high})"


def format_peaks(entry: dict[str, Any]) -> str:
    """The distances of first value maps' peaks of a task, or of all tasks, as text; "" if unknown.

    Args:
        entry: of `results.json`; older evaluations have no centimeters.
    """
    near, table = entry["first_chunk_peak_within_10_percent"], entry.get("first_chunk_peak_on_table")
    if near["share"] is None:
        return ""
    text = f"{near['share']:.0%} of {near['count']}"
    if table and table["count"]:
        text += f"; {table['median_cm']:.1f} cm, {table['within_2_cm']:.0%} within {NEAR_CM:g} cm"
    return text


def summarize(records: dict[str, list[dict[str, Any]]], rejected: dict[str, dict[int, str]]) -> dict[str, Any]:
    """Rates of each task, and over all. Peak errors are those of the head camera's value map.

    Args:
        records: task -> its episodes' records, as `evaluate` writes them; at least one of each task.
        rejected: task -> the seeds that the suite rejected, and why.

    Returns:
        `mean_rate`, the mean of the tasks' rates; `first_chunk_peak_within_10_percent`; `first_chunk_peak_on_table`,
        `median_cm` and the share `within_2_cm`; `tasks`, name -> episodes, successes, rate, wilson, mean_steps,
        expert_successes, peaks, seeds, outcomes (a string with 0 or 1 for each seed) and rejected_seeds; `simulators`,
        all that took part.
    """
    tasks = {}
    for task, episodes in records.items():
        episodes = sorted(episodes, key=lambda record: record["seed"])
        tasks[task] = {
            "episodes": len(episodes),
            **rate_of(sum(record["success"] for record in episodes), len(episodes)),
            "mean_steps": sum(record["steps"] for record in episodes) / len(episodes),
            "expert_successes": sum(record["expert_success"] for record in episodes),
            **_peaks(episodes),
            "seeds": [record["seed"] for record in episodes],
            "outcomes": "".join(str(int(record["success"])) for record in episodes),
            "rejected_seeds": sorted(rejected[task]),
        }
    simulators = {json.dumps(record["simulator"]) for episodes in records.values() for record in episodes}
    return {
        "mean_rate": sum(task["rate"] for task in tasks.values()) / len(tasks),
        **_peaks([record for task in records.values() for record in task]),
        "simulators": [json.loads(simulator) for simulator in sorted(simulators)],
        "tasks": tasks,
    }


def _peaks(episodes: list[dict[str, Any]]) -> dict[str, Any]:
    """How near the peaks are to the true contact, over the episodes whose head camera sees it, and their number."""

    def known(name: str) -> list[float]:
        errors = [record[name].get("head_camera") for record in episodes if record.get(name) is not None]
        return [error for error in errors if error is not None]

    shares, distances = known("peak_error"), known("peak_error_cm")
    return {
        "first_chunk_peak_within_10_percent": {"share": _share(shares, NEAR), "count": len(shares)},
        "first_chunk_peak_on_table": {
            "median_cm": median(distances) if distances else None,
            "within_2_cm": _share(distances, NEAR_CM),
            "count": len(distances),
        },
    }


def _share(errors: list[float], largest: float) -> float | None:
    return sum(error <= largest for error in errors) / len(errors) if errors else None
