"""Two evaluations on the same scenes, episode by episode."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from ..model.checkpoint import fingerprint, local_folder
from ..pipeline.pipeline_aim import AIMPipeline
from ..rollout.policies import OPTIONS
from .evaluate import read_records, read_results
from .statistics import mcnemar_p, rate_of

# Largest difference of two models' imagined latents, in standard deviations, that counts as rounding of float32, which
# depends on where weights lie in memory: up to 5.5e-6 on checkpoints/aim-tiny.
ROUNDING = 1e-4

SAME = ("suite", "split", "instructions", "value_maps")  # if one of these differs, so do the scenes


def compare(before: Path, after: Path) -> dict[str, Any]:
    """Pairs the episodes of two output folders of `evaluate`.

    Returns:
        `gain_points`: gain in percentage points, mean over tasks.
        `mcnemar_p`: McNemar's exact two-sided p over all pairs.
        `only_before`, `only_after`: how many pairs only that policy succeeded in.
        `before`, `after`: policy, its SHA-256 if known, command, commit and hardware.
        `sampled_differently`: option of the sampler -> its two values, where they differ: not all of the gain was
            learned then.
        `seeds`: the smallest and the largest.
        `tasks`: name -> episodes; `before` and `after`, each with successes, rate and Wilson interval; `gain_points`;
            `mcnemar_p`; the seeds that `lost` the success and those that `won` it.

    Raises:
        FileNotFoundError: if a folder holds no results. ValueError: if they aren't of the same scenes.
    """
    results = [read_results(folder) for folder in (before, after)]
    for name in SAME:
        if results[0][name] != results[1][name]:
            raise ValueError(f"{name} is {results[0][name]!r} in {before} and {results[1][name]!r} in {after}.")
    if results[0]["tasks"].keys() != results[1]["tasks"].keys():
        tasks = [list(result["tasks"]) for result in results]
        raise ValueError(f"{before} and {after} have different tasks: {tasks}.")
    tasks, seeds = {}, set()
    for task in results[0]["tasks"]:
        first, second = (
            {record["seed"]: record["success"] for record in read_records(folder, task)} for folder in (before, after)
        )
        if first.keys() != second.keys():
            raise ValueError(f"{before} and {after} have different seeds of {task}; evaluate both on the same ones.")
        seeds |= first.keys()
        lost = sorted(seed for seed in first if first[seed] and not second[seed])
        won = sorted(seed for seed in first if second[seed] and not first[seed])
        tasks[task] = {
            "episodes": len(first),
            "before": rate_of(sum(first.values()), len(first)),
            "after": rate_of(sum(second.values()), len(second)),
            "gain_points": 100 * (sum(second.values()) - sum(first.values())) / len(first),
            "mcnemar_p": mcnemar_p(len(lost), len(won)),
            "lost": lost,
            "won": won,
        }
    sampled = {name: [result.get(name) for result in results] for name in OPTIONS}
    only_before, only_after = (sum(len(task[name]) for task in tasks.values()) for name in ("lost", "won"))
    return {
        "gain_points": sum(task["gain_points"] for task in tasks.values()) / len(tasks),
        "mcnemar_p": mcnemar_p(only_before, only_after),
        "only_before": only_before,
        "only_after": only_after,
        "before": _origin(results[0]),
        "after": _origin(results[1]),
        "sampled_differently": {name: pair for name, pair in sampled.items() if pair[0] != pair[1]},
        "seeds": [min(seeds), max(seeds)],
        "tasks": tasks,
    }


def format_comparison(comparison: dict[str, Any], names: tuple[str, str] = ("before", "after")) -> str:
    """The comparison as a Markdown table, which calls the two `names`."""
    lines = [
        f"| task | {' | '.join(names)} | gain, points | only {' / only '.join(names)} | McNemar's p |",
        "|---|---|---|---|---|---|",
    ]
    for name, task in comparison["tasks"].items():
        cells = [
            f"{task[side]['rate']:.0%} ({task[side]['successes']}/{task['episodes']}; "
            f"{task[side]['wilson'][0]:.0%} to {task[side]['wilson'][1]:.0%})"
            for side in ("before", "after")
        ]
        changed = f"{len(task['lost'])} / {len(task['won'])}"
        lines.append(
            f"| `{name}` | {' | '.join(cells)} | {task['gain_points']:+.0f} | {changed} | {task['mcnemar_p']:.2g} |"
        )
    rates = [mean_rate(comparison, side) for side in ("before", "after")]
    lines.append(
        f"| mean | **{rates[0]:.1%}** | **{rates[1]:.1%}** | **{comparison['gain_points']:+.1f}** | "
        f"{comparison['only_before']} / {comparison['only_after']} | {comparison['mcnemar_p']:.2g} |"
    )
    if comparison["sampled_differently"]:
        differing = comparison["sampled_differently"].items()
        told = "; ".join(f"`{name}` {pair[0]} {names[0]}, {pair[1]} {names[1]}" for name, pair in differing)
        lines += ["", f"**Sampled differently: {told}.** Not all of the gain comes of the policies."]
    return "\n".join(lines) + "\n"


def same_world(
    before: AIMPipeline, after: AIMPipeline, instruction: str, observation: dict[str, Any]
) -> dict[str, Any]:
    """Whether both pipelines imagine the same RGB and value maps in the first chunk of an episode, and in the next
    one, after both have executed the same actions. Both are sampled as `before`, without guidance.

    Args:
        observation: the first one, in RoboTwin's layout; it is repeated for the frames before the second chunk.

    Returns:
        `same_weights`, whether the tensors that imagination depends on are equal to the last bit (the action head
        stands for a missing history head); `largest_difference` of the imagined latents, in their standard
        deviations; and `same_world`, whether the weights are the same and that difference is at most `ROUNDING`.
    """
    imagined, executed, sampling = [], None, replace(before.sampling_config, guidance_scale=1.0)
    for pipe in (before, after):
        session = pipe.start(instruction)
        latents = []
        for chunk in range(2):
            if chunk == 0:
                pipe.append(session, observation)
            else:
                pipe.append(session, [observation] * pipe.frames_per_chunk, executed)
            generator = torch.Generator().manual_seed(chunk)
            out = pipe(session=session, sampling_config=sampling, generator=generator, output_type="latent")
            executed = out.actions[0] if executed is None else executed
            latents += [out.frames, out.value_maps]
        imagined.append(torch.stack(latents))
    difference = ((imagined[0] - imagined[1]).abs().max() / imagined[0].std()).item()
    first, second = map(_world_tensors, (before, after))
    same_weights = first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )
    return {
        "same_world": same_weights and difference <= ROUNDING,
        "same_weights": same_weights,
        "largest_difference": difference,
    }


def _world_tensors(pipe: AIMPipeline) -> dict[str, torch.Tensor]:
    """The tensors that imagination depends on. Where a history head and history experts encode the past, they take the
    names of the action head and experts, which are left out."""
    tensors = pipe.model.state_dict(prefix="model.")
    if pipe.model.history_head is not None:
        acting = [name for name in tensors if name.startswith("model.action_head.") or ".action." in name]
        for name in acting:
            encoding = name.replace("model.action_head.", "model.history_head.").replace(".action.", ".history.")
            tensors[name] = tensors.pop(encoding)
    return pipe.vae.state_dict(prefix="vae.") | pipe.text_encoder.state_dict(prefix="text_encoder.") | tensors


def mean_rate(comparison: dict[str, Any], side: Literal["before", "after"]) -> float:
    """The mean success rate over all tasks, in [0, 1]."""
    return sum(task[side]["rate"] for task in comparison["tasks"].values()) / len(comparison["tasks"])


def training_summary(record: dict[str, Any]) -> dict[str, Any]:
    """Summarizes training.json of a stage 2 run.

    Returns:
        command, commit, hardware, seeds, steps and processes of the run; `episodes`, the number of episodes rolled
        out; `hours` of rollouts and learning, and the share of them in simulation, `simulation_share`;
        `control_steps_per_core_second` while simulating; and `first` and `last`, means over the first and the last
        fifth of its iterations of rewards, success and value hits in rollouts, and of the KL divergence; None if
        these iterations have no such number, as without learning from a group, or without a map that shows a place.

    Raises:
        ValueError: if no rollout was logged.
    """
    # A step all of whose groups were dropped has times, and no divergence.
    learned = [entry for entry in record["log_history"] if "kl" in entry]
    rolled = [entry for entry in record["log_history"] if "reward" in entry]
    if not rolled:
        raise ValueError("it logs no rollout, as with --logging_steps above --max_steps")
    seconds = {
        name: sum(entry.get(f"time/{name}", 0.0) for entry in record["log_history"])
        for name in ("simulation", "inference", "learning")
    }
    rates = [entry["rollout/control_steps_per_core_second"] for entry in rolled]
    summary = {name: record[name] for name in ("command", "commit", "hardware", "seeds", "steps", "processes")}
    summary |= {
        "episodes": round(sum(e["rollout/control_steps"] / e["completions/mean_length"] for e in rolled)),
        "hours": sum(seconds.values()) / record["processes"] / 3600,
        "simulation_share": seconds["simulation"] / sum(seconds.values()),
        "control_steps_per_core_second": sum(rates) / len(rates),
    }
    prefixes = ("reward", "rollout/success", "rollout/value")
    shown = dict.fromkeys(key for entry in rolled for key in entry if key.startswith(prefixes))
    for name, way in (("first", 1), ("last", -1)):
        entries, steps = (of[::way][: -(-len(of) // 5)] for of in (rolled, learned))
        summary[name] = {key: _logged_mean(key, entries) for key in shown}
        summary[name]["kl"] = _logged_mean("kl", steps)
    return summary


def _logged_mean(name: str, entries: list[dict[str, Any]]) -> float | None:
    """The mean over the entries that have the metric; None if none has."""
    values = [entry[name] for entry in entries if name in entry]
    return sum(values) / len(values) if values else None


def _origin(results: dict[str, Any]) -> dict[str, Any]:
    origin = {name: results[name] for name in ("policy", "command", "commit", "hardware")}
    return origin | {"policy_sha256": results.get("policy_sha256")}  # unknown for another server's weights


def check_weights(comparison: dict[str, Any]) -> None:
    """Checks that the weights of both policies are here, as they were evaluated.

    Raises:
        ValueError: for a policy behind a server, and one that has changed since. OSError: if there is none.
    """
    for side in ("before", "after"):
        policy, evaluated = comparison[side]["policy"], comparison[side]["policy_sha256"]
        if evaluated is None:
            raise ValueError(f"{policy} was evaluated behind a server, and its weights aren't here.")
        if (found := fingerprint(local_folder(policy))) != evaluated:
            raise ValueError(
                f"{policy} has changed since it was evaluated: its SHA-256 was {evaluated[:12]}…, and is now "
                f"{found[:12]}…. Evaluate it again into another folder."
            )
