"""Tables of the study of how the imagined future reaches the actions (`benchmarks/evidence.py`)."""

from collections import Counter
from typing import Any

from markdown_tables import read, table

from aim_hf.utils.provenance import machine

NAME = "evidence/evidence"
HARD = "hard"
# Columns of a paired test.
DIFFERENCE = {
    "points": lambda test: gain(test),
    "p": lambda test: f"{test['p']:.2g}",
    "Holm's p": lambda test: f"{test['holm_p']:.2g}",
}


def rates() -> str:
    """Success of each arm under each condition, with intervals over scenes."""
    found = read(NAME)
    columns = {"arm": lambda arm: f"`{arm}`", "training seeds": lambda arm: len(found["judged"][arm])}
    for condition, of_arms in found["arms"].items():
        columns[headed(condition)] = lambda arm, of_arms=of_arms: rate(of_arms[arm])
    return f"{table(columns, found['judged'])}\n{judged(found)}"


def rate(summary: dict[str, Any]) -> str:
    low, high = summary["interval"]
    seeds = " / ".join(f"{of_seed:.0f}" for of_seed in summary["of_each_seed"])
    return f"{summary['mean']:.1f} ({low:.0f} to {high:.0f})" + (
        f"; {seeds}" if len(summary["of_each_seed"]) > 1 else ""
    )


def headed(condition: str) -> str:
    """A condition with a capital, without changing those that it has."""
    return condition[0].upper() + condition[1:]


def judged(found: dict[str, Any]) -> str:
    """Where the arms were judged: the commits and the hardware."""
    origins = [origin for of_arm in found["judged"].values() for origin in of_arm]
    commits = ", ".join(dict.fromkeys(origin["commit"][:10] for origin in origins))
    machines = ", ".join(Counter(machine(origin["hardware"]) for origin in origins))
    return f"Judged by the commands below at commit {commits}, on {machines}.\n"


def gain(test: dict[str, Any]) -> str:
    """A gain in points, and that of each training seed where there are several."""
    seeds = " / ".join(f"{of_seed:+.0f}" for of_seed in test["gain_of_each_seed"])
    return f"{test['gain_points']:+.1f}" + (f"; {seeds}" if len(test["gain_of_each_seed"]) > 1 else "")


def tasks() -> str:
    """Success of each arm on Hard without action noise: by task, and by the groups of tasks."""
    found = read(NAME)
    of_arms = found["arms"][HARD]
    columns = {"arm": lambda arm: f"`{arm}`"}
    for task in next(iter(of_arms.values()))["tasks"]:
        columns[f"`{task}`"] = lambda arm, task=task: f"{of_arms[arm]['tasks'][task]:.0f}"
    for group in found["groups"]:
        columns[group] = lambda arm, group=group: f"{of_arms[arm]['groups'][group]:.0f}"
    return table(columns, of_arms)


def tests() -> str:
    """The paired tests between arms."""
    pairs = read(NAME)["tests"]
    if not pairs:
        return "No two arms that are compared were judged yet.\n"
    columns = {
        "condition": lambda test: headed(test["condition"]),
        "arms": lambda test: "`{1}` against `{0}`".format(*test["arms"]),
        **DIFFERENCE,
    }
    return table(columns, pairs)


def interventions() -> str:
    """The paired tests of arms that act on another scene's future, against themselves."""
    columns = {
        "arm": lambda test: f"`{test['arm']}`",
        "acts on": lambda test: test["condition"].removeprefix(f"{HARD}, "),
        **DIFFERENCE,
    }
    return table(columns, read(NAME)["interventions"])


def peaks() -> str:
    """How far the first maps' peaks lie from the contact, on Hard."""
    found = read(NAME)
    of_arms = {arm: [of_seed[HARD] for of_seed in of_arm] for arm, of_arm in found["peaks"].items()}
    columns = {
        "arm": lambda arm: f"`{arm}`",
        "median distance on the table, cm": lambda arm: " / ".join(f"{of['median_cm']:.2f}" for of in of_arms[arm]),
        "within 2 cm": lambda arm: " / ".join(f"{of['within_2_cm']:.0%}" for of in of_arms[arm]),
    }
    return table(columns, of_arms)
