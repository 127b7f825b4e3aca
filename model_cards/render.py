"""Writes model cards, and the tables of README.md and docs/, from result files: no number is typed by hand.

    python model_cards/render.py     # this repository's own

In README.md and docs/*.md, the lines between `<!-- results of NAME -->` and `<!-- end of results -->` are written by
`SECTIONS[NAME]` from benchmarks/results. checkpoints/NAME/README.md is written from its text model_cards/NAME.md and
from benchmarks/results/NAME.

    python model_cards/render.py --card aim-wan2.2-ti2v-5b --folder runs/aim/pipeline --repo_id org/aim \\
        --datasets org/aim-robotwin
    python model_cards/render.py --card lora --folder runs/aim/adapter --repo_id org/aim-lora --base_model org/aim \\
        --datasets org/my-robot

writes FOLDER/README.md, the card of a training run, from the files beside FOLDER: `training.json` of aim-hf train, and
evaluation/NAME/results.json of aim-hf evaluate (NAME: easy, hard, easy-true-maps).
"""

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from statistics import mean
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from aim_hf.envs.names import splits_of
from aim_hf.evaluation.comparison import format_comparison, mean_rate
from aim_hf.evaluation.statistics import format_peaks, format_rate, wilson_interval
from aim_hf.utils.provenance import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PUBLISHED = ROOT / "src" / "aim_hf" / "evaluation" / "published" / "table2_robotwin.csv"
SECTION = re.compile(r"(<!-- results of ([\w-]+) -->\n).*?(<!-- end of results -->\n)", re.DOTALL)
EVALUATIONS = {"easy": "Easy", "hard": "Hard", "easy-true-maps": "Easy, given the true value maps"}
SUITES = {"tabletop": "the tabletop simulator of aim-hf", "robotwin": "RoboTwin 2.0", "aloha": "gym-aloha"}
ROBOTWIN_EPISODES = 30_000  # 300 of each of 50 tasks and both splits
NO_WEIGHTS = """**No weights of this model exist yet, and nothing was measured.** This page is a template, which the
results of a training run fill.
"""

# ------------------------------------------------------------------------------------------------------ the renderer


def table(columns: dict[str, Callable[[Any], object]], rows: Iterable[Any]) -> str:
    """A Markdown table. `columns`: header -> the cell of a row, in that column."""
    cells = [list(columns), ["---"] * len(columns), *([str(cell(row)) for cell in columns.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def read(name: str) -> dict[str, Any]:
    """benchmarks/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def origin(result: dict[str, Any]) -> str:
    """The command, commit and hardware of a result."""
    return f"`{result['command']}` (commit {(result['commit'] or 'unknown')[:10]}, {machine(result['hardware'])})"


def bullets(results: dict[str, dict[str, Any]]) -> str:
    """The origin of each named result."""
    return "".join(f"- {name}: {origin(result)}\n" for name, result in results.items())


def episodes(comparison: dict[str, Any]) -> int:
    return sum(task["episodes"] for task in comparison["tasks"].values())


# ------------------------------------------------------------------------------------------------------- evaluations


def read_evaluations(folder: Path, path: str = "{}.json") -> dict[str, dict[str, Any]]:
    """Title -> results.json of those of `EVALUATIONS` that are in `folder`, each under `path`."""
    paths = {title: folder / path.format(name) for name, title in EVALUATIONS.items()}
    return {title: json.loads(path.read_text()) for title, path in paths.items() if path.exists()}


def success_table(results: dict[str, dict[str, Any]]) -> str:
    """Success rates of each task with their 95 % Wilson intervals, and the first maps' peaks on the first split.

    Args:
        results: of `read_evaluations`.
    """
    if not results:
        return "Nothing was measured yet.\n"
    title, first = next(iter(results.items()))
    tasks = list(first["tasks"])

    def rate(result: dict[str, Any]) -> Callable[[str], str]:
        return lambda task: format_rate(result["tasks"][task]) if task in tasks else f"**{result['mean_rate']:.0%}**"

    columns = {
        "task": lambda task: f"`{task}`" if task in tasks else task,
        **{name: rate(result) for name, result in results.items()},
        f"first value map's peak near the contact, {title}": lambda task: format_peaks(
            first["tasks"].get(task, first)
        ),
    }
    return table(columns, tasks + ["mean"] if len(tasks) > 1 else tasks)


def training_text(path: Path) -> str:
    """Steps and origin of stage 1, from its training.json, and of stage 2 if stage2-hard.json lies beside it."""
    if not path.exists():
        return "Nothing was trained yet.\n"
    run = json.loads(path.read_text())
    text = f"{run['steps']:,} steps of stage 1: {origin(run)}.\n"
    stage2 = path.with_name("stage2-hard.json")
    if stage2.exists():
        run = json.loads(stage2.read_text())["training"]
        text += (
            f"\n{run['steps']:,} steps of stage 2, on {run['episodes']:,} episodes of practice in "
            f"{60 * run['hours']:.0f} minutes: {origin(run)}.\n"
        )
    return text


# ------------------------------------------------------------------------------------------------------- comparisons

# Results of `aim-hf compare`: the change, the two policies, the split, and the file.
_STAGES = ("after stage 1", "after stage 2")
CARD_COMPARISONS = [
    (change, names, split, f"aim-tiny/{file}-{split.lower()}")
    for change, names, file in (
        ("actions without noise (`action_noise_scale` 0), after stage 1", ("from noise", "without"), "noise"),
        ("stage 2", _STAGES, "stage2"),
        ("stage 2, both without action noise", _STAGES, "stage2-without-noise"),
        ("value maps, after stage 1", ("without value maps", "with"), "value-maps"),
    )
    for split in ("Easy", "Hard")
]
COMPARISONS = [
    *CARD_COMPARISONS,
    ("stage 2 practised and judged without action noise", _STAGES, "Hard", "grpo/aim-tiny-without-noise"),
    ("bfloat16 instead of float32", ("float32", "bfloat16"), "Hard", "dtype/bfloat16-hard"),
]


def pooled_rate(comparison: dict[str, Any], side: str) -> str:
    """Successes of all tasks, with their 95 % Wilson interval in percent."""
    successes, count = sum(task[side]["successes"] for task in comparison["tasks"].values()), episodes(comparison)
    low, high = (round(100 * bound) for bound in wilson_interval(successes, count))
    return f"{mean_rate(comparison, side):.1%} ({successes}/{count}; {low} to {high})"


def comparison_table(comparisons: list[tuple[str, tuple[str, str], str, str]]) -> str:
    """A row for each comparison."""
    rows = [(change, split, read(file)) for change, _, split, file in comparisons]
    columns = {
        "change": itemgetter(0),
        "split": itemgetter(1),
        "before": lambda row: pooled_rate(row[2], "before"),
        "after": lambda row: pooled_rate(row[2], "after"),
        "gain, points": lambda row: f"{row[2]['gain_points']:+.1f}",
        "McNemar's p": lambda row: f"{row[2]['mcnemar_p']:.2g}",
        "seeds from": lambda row: f"{row[2]['seeds'][0]:,}",
    }
    return table(columns, rows)


def comparison_origins(comparisons: list[tuple[str, tuple[str, str], str, str]]) -> dict[str, dict[str, Any]]:
    return {
        f"{change}, {split}, {name}": read(file)[side]
        for change, names, split, file in comparisons
        for name, side in zip(names, ("before", "after"))
    }


def comparison_details() -> str:
    """A table of tasks for each comparison of the card of aim-tiny."""
    return "\n".join(
        f"{change[0].upper()}{change[1:]}, {split}:\n\n{format_comparison(read(file), names)}"
        for change, names, split, file in CARD_COMPARISONS
    )


# --------------------------------------------------------------------------------------------------- stage 2, studies

REWARDS = {
    "both": "grpo_tabletop",
    "success alone": "grpo/success",
    "value map alone": "grpo/value_map",
    "both, `action_noise_scale` 0": "grpo/without-noise",
}


def grpo_tasks() -> str:
    """Success of each task before and after the run with both rewards, and the cost of that run."""
    run = read("grpo_tabletop")
    training = run["training"]
    unchanged = (
        "All weights that RGB and value maps depend on are stored unchanged: both imagine the same, within the "
        "rounding of float32."
        if run["same_world"]
        else "**RGB or value maps are not the same before and after.**"
    )
    return f"""{format_comparison(run)}
{episodes(run)} episodes, on seeds from {run["seeds"][0]:,} on, before and after {training["steps"]} steps of GRPO on
{training["episodes"]:,} episodes of practice, which took {60 * training["hours"]:.0f} minutes \
({machine(training["hardware"])}; commit {training["commit"][:10]}).
{unchanged}
"""


def grpo_rewards() -> str:
    """Success and rollout metrics of each choice of rewards."""
    runs = {rewards: read(name) for rewards, name in REWARDS.items()}

    def rolled(metric: str, form: str) -> Callable[[str], str]:
        means = {
            rewards: [run["training"][part][metric] for part in ("first", "last")] for rewards, run in runs.items()
        }
        return lambda rewards: " to ".join(f"{mean:{form}}" for mean in means[rewards])

    columns = {
        "rewards": str,
        "before": lambda rewards: f"{mean_rate(runs[rewards], 'before'):.1%}",
        "after": lambda rewards: f"{mean_rate(runs[rewards], 'after'):.1%}",
        "gain, points": lambda rewards: f"{runs[rewards]['gain_points']:+.1f}",
        "McNemar's p": lambda rewards: f"{runs[rewards]['mcnemar_p']:.2g}",
        "value map's reward": rolled("rewards/value_map_reward/mean", ".2f"),
        "value hits": rolled("rollout/value_hit", ".0%"),
        "KL": lambda rewards: f"{runs[rewards]['training']['last']['kl']:.2f}",
    }
    training, learner = runs["both"]["training"], read("grpo/tiny")
    return f"""{table(columns, runs)}
The run with both rewards simulated {training["control_steps_per_core_second"]:.0f} control steps a second and core;
simulation took {training["simulation_share"]:.0%} of its time. A learner that trains all denoising steps is
{learner["plain_over_ours"]:.1f} times as fast as one that runs the video expert again for each of them, and
{learner["replayed_over_ours"]:.1f} times as fast as one that replays its cache (`benchmarks/grpo.py`).
"""


def study(name: str) -> str:
    """A study of `benchmarks/closed_loop.py`."""
    found = read(f"closed_loop/{name}")
    tasks = list(found["rows"][0]["tasks"])
    columns = {
        "setting": lambda row: ", ".join(f"`{name}` {value}" for name, value in row["setting"].items()) or "defaults",
        "success": lambda row: f"{row['rate']:.0%} ({row['successes']}/{row['episodes']})",
        "95 % interval": lambda row: f"{row['wilson'][0]:.0%} to {row['wilson'][1]:.0%}",
        **{f"`{task}`": lambda row, task=task: row["tasks"][task] for task in tasks},
    }
    return (
        f"{table(columns, found['rows'])}\n`{found['policy']}` on {found['split'].capitalize()}, "
        f"{found['rows'][0]['episodes'] // len(tasks)} episodes a task and setting, the same seeds for all of them: "
        f"`{found['command']}` (commit {found['commit'][:10]}).\n"
    )


def imagined_study() -> str:
    """Success on Hard before and after training the actions further, on true maps or also on imagined ones."""
    names = {
        "stage 1, a third of the steps": "before",
        "250 more steps, true maps": "true_maps",
        "250 more steps, half of them imagined": "imagined_maps",
        "stage 1 anew, half of them imagined from the start": "from_the_start",
    }
    found = {title: read(f"evidence/imagined/{name}") for title, name in names.items()}
    tasks = list(found["stage 1, a third of the steps"]["tasks"])
    columns = {
        "training": str,
        "success": lambda title: f"{found[title]['mean_rate']:.0%}",
        **{f"`{task}`": lambda title, task=task: found[title]["tasks"][task]["successes"] for task in tasks},
    }
    episodes = found["stage 1, a third of the steps"]["tasks"][tasks[0]]["episodes"]
    return f"{table(columns, names)}\n{episodes} episodes a task, the same seeds for all:\n\n{bullets(found)}"


def noise_study() -> str:
    """Success by `action_noise_scale`, split and stage of training."""
    files = {"Easy": "noise-easy", "Hard": "noise-hard", "Hard, as stage 1 had left it": "noise-stage1-hard"}
    studies = {title: read(f"closed_loop/{name}") for title, name in files.items()}
    # A setting that doesn't name the scale has the default, 1.
    rates = {
        title: {row["setting"].get("action_noise_scale", 1.0): row for row in found["rows"]}
        for title, found in studies.items()
    }
    columns = {"`action_noise_scale`": str}
    for scale in rates["Hard"]:
        columns[f"{scale:g}"] = lambda title, scale=scale: format_rate(rates[title][scale])
    first = studies["Hard"]["rows"][0]
    return (
        f"{table(columns, studies)}\n{first['episodes'] // len(first['tasks'])} episodes a task and setting, the same "
        f"seeds for all of a split; 95 % intervals:\n\n{bullets(studies)}"
    )


# -------------------------------------------------------------------------------------------------------------- costs

SIZES = {"tiny": "`tiny`", "tiny-x4": "`tiny`, 4 times wider", "wan2.2-ti2v-5b-2-layers": "5B's width, two layers"}
RATIOS = {
    "uncached_over_cached_at_16": "a chunk after 16 others without a cache, over ours",
    "flatness_after_window": "the 32nd chunk over the first one with a full window",
    "lingbot_settings_over_ours": "a chunk at LingBot-VA's settings over ours at our defaults",
    "lingbot_settings_over_ours_counted": "the same, operations counted, all layers",
    "backbone_action_loop_over_ours": "the action steps through the video backbone, over ours",
    "backbone_action_loop_over_ours_counted": "those, operations counted, all layers",
    "action_step_over_video_step": "an action step over a video step",
    "packed_over_single_chunk": "supervised tokens a second, eight chunks packed over one at a time",
}


def pairs(rows: dict[str, str]) -> str:
    return table({"what": itemgetter(0), "measured": itemgetter(1)}, rows.items())


def speed() -> str:
    """The benchmarks' ratios at each size that was measured."""
    columns = {"ratio": RATIOS.get}
    for size, title in SIZES.items():
        kinds = [kind for kind in ("rollout", "latency", "training") if (RESULTS / kind / f"{size}.json").exists()]
        measured = {name: value for kind in kinds for name, value in read(f"{kind}/{size}").items()}
        columns[title] = lambda name, found=measured: f"{found[name]:.3g}" if found.get(name) is not None else ""
    return (
        f"{table(columns, RATIOS)}\nMeasured on {machine(read('latency/tiny')['hardware'])}, float32; alternatives in "
        "turn within one run. Times of each stage, commands and commits are in `benchmarks/results`.\n"
    )


def counted(result: dict[str, Any]) -> dict[str, Any]:
    """The columns of a budget in the tables."""
    memory, settings = result["memory_gb"], result["settings"]
    trained = "LoRA" if settings["lora_rank"] else "all"
    options = [f"--preset {settings['preset']}", f"--gpus {settings['gpus']}"]
    for name in ("canvas_size", "lora_rank"):
        if settings[name]:
            value = settings[name]
            options.append(f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return {
        "trained": f"{trained}, {float(result['parameters']['trained here'].split()[0]):.2f} B",
        "weights": memory["weights, split"],
        "states": sum(gb for name, gb in memory.items() if name.endswith("float32 and split")),
        "activations": memory["activations"],
        "checkpointed": memory["activations with activation checkpointing"],
        "total": memory["total with activation checkpointing"],
        "tflop": sum(result["training_tflop"].values()),
        "options": f"`{' '.join(options)}`",
        "canvas": settings["canvas_size"] or [384, 320],
    }


def budgets() -> str:
    """Memory of a GPU in training, and operations of a sequence, of each set-up."""
    setups = {"5b-8-gpus": "5B, 8 GPUs", "5b-lora": "5B, 1 GPU", "5b": "5B, 1 GPU", "1.3b-lora": "1.3B, 1 GPU"}
    setups |= {"1.3b": "1.3B, 1 GPU", "1.3b-small-lora": "1.3B, 1 GPU", "1.3b-small": "1.3B, 1 GPU"}
    results = [(title, counted(read(f"budget/{name}"))) for name, title in setups.items()]
    columns = {
        "model": lambda row: row[0],
        "canvas": lambda row: "{} x {}".format(*row[1]["canvas"]),
        "trained": lambda row: row[1]["trained"],
        "weights": lambda row: f"{row[1]['weights']:.1f}",
        "gradients, AdamW, averages": lambda row: f"{row[1]['states']:.1f}",
        "activations": lambda row: f"{row[1]['activations']:.1f}",
        "checkpointed": lambda row: f"{row[1]['checkpointed']:.1f}",
        "in all, checkpointed": lambda row: f"**{row[1]['total']:.1f}**",
        "TFLOP": lambda row: f"{row[1]['tflop']:.0f}",
        "options": lambda row: row[1]["options"],
    }
    commit = read("budget/5b")["commit"][:10]
    return f"{table(columns, results)}\nCounted by `benchmarks/budget.py` with these options (commit {commit}).\n"


def machines() -> str:
    """Memory, counted hours and command of each use of each machine."""

    def row(machine: str, what: str, name: str, command: str) -> tuple[str, ...]:
        result = read(f"budget/{name}")
        memory, settings = result["memory_gb"]["total with activation checkpointing"], result["settings"]
        hours = f"{result['hours']:.0f} h for {settings['sequences']:,} sequences"
        return machine, what, f"{memory:.0f} GB", hours, f"`{command}`"

    def served(machine: str, what: str, name: str, command: str) -> tuple[str, ...]:
        result = read(f"budget/{name}")
        parts, history = result["serving_gb"], result["rollout_memory_gb"]["history_chunks of the preset"]
        return machine, what, f"{parts['model'] + parts['VAE'] + history:.0f} GB", "", command

    train = "accelerate launch {} -m aim_hf train --bf16 --activation_checkpointing {}..."
    one, lora = "--config_file pipelines/accelerate/gpu.yaml", "--lora_rank 64 "
    serve = "`aim-hf serve --dtype bfloat16 --text_encoder_device cpu ...`"
    eight = train.format("--config_file pipelines/accelerate/fsdp2.yaml", "")
    rows = [
        ("laptop", "watch `aim-tiny` act", "", "", "`aim-hf app`, `aim-hf demo`"),
        ("laptop", "train one task from nothing", "", "", "`make train-click-bell`"),
        row("24 GB", "fine-tune 1.3B, canvas 192 x 160", "1.3b-small-lora", train.format(one, lora)),
        served("24 GB", "serve or evaluate 5B", "5b", serve),
        row("one H100", "fine-tune 5B", "5b-lora", train.format(one, lora)),
        row("one H100", "train all of 1.3B, canvas 192 x 160", "1.3b-small", train.format(one, "")),
        row("eight H100", "train all of 5B", "5b-8-gpus", eight),
    ]
    names = ("machine", "what", "memory", "hours, counted", "command")
    columns = {name: itemgetter(index) for index, name in enumerate(names)}
    share, tflops = read("budget/5b")["settings"]["share"], read("budget/1.3b-small-lora")["settings"]["tflops"]
    return (
        f"{table(columns, rows)}\nHours are operations over {share:.0%} of the peak in bfloat16, 989 TFLOP/s of an "
        f"H100 SXM or {tflops:.0f} of an RTX 4090. Nobody measured them.\n"
    )


def cluster() -> str:
    """Stage 1 of the 5B model on clusters."""
    result = read("cluster/wan2.2-ti2v-5b")
    settings, data, encoding = (result[name] for name in ("settings", "data", "encoding"))
    columns = {
        "GPUs": itemgetter("gpus"),
        "set-up": itemgetter("set-up"),
        "memory, GB": lambda row: f"{row['memory_gb']:.1f}",
        "sequences a step": itemgetter("sequences_per_step"),
        "steps": lambda row: f"{row['steps']:,}",
        "NVLink, GB": lambda row: f"{row['nvlink_gb']:.1f}",
        "network, GB": lambda row: f"{row['network_gb']:.1f}",
        "computing, s": lambda row: f"{row['compute_seconds']:.2f}",
        "communicating, s": lambda row: f"{row['communication_seconds']:.2f}",
        "hours": lambda row: f"{row['hours']:.2f} to {row['hours_without_overlap']:.2f}",
        "GPU hours": lambda row: f"{row['gpu_hours']:.0f}",
        "latents, MB/s": lambda row: f"{row['latents_read_mb_per_second']:.0f}",
    }
    return (
        f"{table(columns, result['rows'])}\n{settings['episodes']:,} episodes of {settings['episode_steps']} control "
        f"steps are {data['parquet_gb']:.0f} GB of Parquet and {data['latents_gb']:.0f} GB of latents. Encoding them "
        f"is {encoding['video_pflop']:,.0f} PFLOP of the VAE and {encoding['text_pflop']:,.0f} of the text encoder, "
        f"{encoding['gpu_hours']:.1f} GPU hours that read {encoding['parquet_mb_per_second_and_gpu']:.1f} MB/s. "
        f"{settings['sequences']:,} sequences of {settings['chunks']} chunks are {data['epochs']:.1f} epochs, "
        f"{result['rows'][0]['tflop_per_gpu']:.0f} TFLOP each.\n\nCounted by {origin(result)}; nothing is measured.\n"
    )


def experts(suite: str) -> str:
    """Success of a suite's scripted experts."""
    found = read(f"{suite}_experts")
    columns = {"task": lambda task: f"`{task}`"}
    for split in splits_of(suite):
        columns[split.capitalize()] = lambda task, split=split: "{successes}/{episodes}".format(
            **found["tasks"][task][split]
        )
    return f"{table(columns, found['tasks'])}\nMeasured by {origin(found)}.\n"


def robotwin_experts() -> str:
    """Success of RoboTwin's experts with the stand-in assets, and why the other tasks don't run."""
    found = read("robotwin_experts")
    tasks = {task: rows for task, rows in sorted(found["tasks"].items()) if "problem" not in rows["easy"]}
    columns = {"task": lambda task: f"`{task}`"}
    for split in ("easy", "hard"):
        columns[split.capitalize()] = lambda task, split=split: "{successes}/{episodes}".format(**tasks[task][split])
    columns["assets"] = lambda task: tasks[task]["easy"]["simulator"]["assets"]
    columns["commit"] = lambda task: tasks[task]["commit"][:10]
    others = "; ".join(
        f"`{task}`: {rows['easy']['problem']}" for task, rows in found["tasks"].items() if task not in tasks
    )
    return (
        f"{table(columns, tasks)}\nMeasured by `benchmarks/robotwin_experts.py` on {machine(found['hardware'])}, each "
        f"task with the assets and the code that it names. What doesn't run: {others}\n"
    )


def robotwin_cost() -> str:
    """A core's seconds and bytes of RoboTwin's episodes with stand-in assets; what `ROBOTWIN_EPISODES` then take."""
    found = read("robotwin_cost")
    quantities = {
        "a core's seconds": lambda row: sum(row["seconds"].values()),
        "of these, the simulator": lambda row: row["seconds"]["simulator"],
        "of these, labels and videos": lambda row: row["seconds"]["labels and videos"],
        "frames": itemgetter("frames"),
        "MB": lambda row: row["bytes"] / 1e6,
    }
    rows = {split: {} for split in ("easy", "hard")}
    for name, row in found["tasks"].items():
        task, split = name.split("/")
        if "problem" not in row:
            rows[split][task] = row
    easy = {name: [of(row) for row in rows["easy"].values()] for name, of in quantities.items()}
    ratio = {  # of Hard to Easy, on the tasks that were measured on both
        name: sum(map(of, rows["hard"].values())) / sum(of(rows["easy"][task]) for task in rows["hard"])
        for name, of in quantities.items()
    }
    columns = {"of an episode": str} | {
        name: lambda row, of=of: f"{of(easy[row]):.3g}"
        for name, of in (("Easy, mean", mean), ("least", min), ("most", max))
    }
    columns["Hard to Easy"] = lambda row: f"{ratio[row]:.2f}"
    hours, size = (mean(easy[name]) * (1 + ratio[name]) / 2 * ROBOTWIN_EPISODES for name in ("a core's seconds", "MB"))
    simulator = next(iter(rows["easy"].values()))["simulator"]
    start = mean(row["start_seconds"] for row in rows["easy"].values())
    return (
        f"{table(columns, quantities)}\nMeasured by `{found['command'].split()[0]}` on {machine(found['hardware'])}, "
        f"beside other programs, on an episode of each of {len(rows['easy'])} tasks, and {len(rows['hard'])} on Hard: "
        f"{simulator['assets']}, shader `{simulator['shader']}`, planner `{simulator['planner']}`. "
        f"A simulator starts in {start:.1f} s more. At these "
        f"means, {ROBOTWIN_EPISODES:,} episodes, half of them Hard, take {hours / 3600:.0f} core "
        f"hours and {size / 1e3:.0f} GB.\n"
    )


def serving() -> str:
    """Requests and latency of the policy server under load."""
    found = read("serving/tiny")
    settings, requests, latency = found["settings"], found["requests"], found["latency_seconds"]
    rows = {
        "clients, rows of a batch": f"{settings['clients']}, {settings['rows']}",
        "requests answered, lost": f"{requests['answered']}, {requests['lost']}",
        "requests a second": f"{found['requests_per_second']:.1f}",
        "latency, median and 99th percentile": f"{latency['p50']:.1f} s, {latency['p99']:.1f} s",
    }
    return f"{pairs(rows)}\nMeasured by {origin(found)}.\n"


def dataset() -> str:
    """Costs of collecting, storing and reading, and of 30,000 episodes of RoboTwin."""
    collect, size, reading = (read(f"dataset/{name}") for name in ("collect", "size", "read"))
    frames, hard, rate = size["frames_of_an_episode"], size["hard"], reading["windows_per_second"]
    seconds = frames * (hard["seconds_per_frame"]["labelling"] + hard["seconds_per_frame"]["encoding"])
    rows = {
        "collecting `tabletop`, one core": f"{collect['episodes_per_hour_and_core']:,.0f} episodes an hour",
        "of which": ", ".join(f"{name} {share:.0%}" for name, share in collect["shares"].items()),
        "labelling over simulating and rendering": f"{collect['labelling_over_simulating_and_rendering']:.1%}",
    }
    for split in ("easy", "hard"):
        rgb, value = (size[split]["bytes_per_frame"][name] / 1e3 for name in ("rgb", "value"))
        rows[f"an episode of {frames} frames, three views of 320 x 240, {split.capitalize()}"] = (
            f"{size[split]['megabytes_per_episode']:.2f} MB (RGB {rgb:.1f} kB and value maps {value:.1f} kB a frame)"
        )
    rows |= {
        "random windows, maps rendered": f"{rate['windows_rendered']:.1f} a second",
        "random windows, maps decoded": f"{rate['windows_decoded']:.1f} a second",
        "decoding the whole episode for each": f"{rate['whole_episodes']:.1f} a second: "
        f"{reading['windows_over_whole_episodes']:.1f} times slower",
        "lerobot's own reader, maps decoded": f"{rate['lerobot']:.1f} a second: "
        f"{reading['windows_decoded_over_lerobot']:.1f} times slower",
    }
    plan = {"a seed takes": lambda seed: f"{seed} s"} | {
        f"{share} % of seeds succeed": lambda seed, share=share: f"{300 * (100 * seed / share + seconds) / 864:.1f}"
        for share in (90, 60, 30)
    }
    return f"""{pairs(rows)}
Measured on {machine(collect["hardware"])}, one process; commands and commits are in `benchmarks/results/dataset`.

30,000 episodes of {frames} frames are {hard["gigabytes_of_30000_episodes"]:.0f} GB at Hard's size. Labelling and \
encoding one takes {seconds:.1f} s of a core. The time of RoboTwin's own simulation, ray tracing and planning on a \
GPU has not been measured here. Days of one process, by the time for a seed and the share of seeds on which the \
expert succeeds:

{table(plan, (20, 60, 120))}"""


def installation() -> str:
    """Packages, megabytes and seconds of import, of the core and of each extra, and of the package before extras."""
    now, before = read("installation"), read("installation-before")
    rows = {name if name == "core" else f"`{name}`": extra for name, extra in now["extras"].items()}
    rows[f"before there were extras ({before['project_commit'][:10]})"] = before["extras"]["core"]
    seconds = [[*extra["import_seconds"].values(), extra["torch_seconds"]] for extra in rows.values()]
    imports = ("`import aim_hf`", "`from aim_hf import AIMPipeline`", "`import torch`")
    columns = {
        "installed": lambda row: row[0],
        "packages": lambda row: row[1]["packages"],
        "MB": lambda row: f"{row[1]['megabytes']:,}",
        **{name: lambda row, index=index: f"{row[2][index]:.2f} s" for index, name in enumerate(imports)},
    }
    return f"{table(columns, zip(rows, rows.values(), seconds))}\nMeasured by {origin(now)}.\n"


def aloha() -> str:
    """AIM and LeRobot's policies on ALOHA's transfer cube; nothing before `benchmarks/aloha.py report` has run."""
    if not (RESULTS / "aloha.json").exists():
        return "Not run yet.\n"
    found = read("aloha")
    columns = {
        "arm": lambda row: f"`{row['arm']}`",
        "episodes": lambda row: row["episodes"],
        "checkpoint": lambda row: row["checkpoint"],
        "hours": lambda row: f"{row['hours']:.1f}",
        "`lerobot-eval`": lambda row: format_rate(row["success"]["lerobot"]),
        "`aim-hf evaluate`": lambda row: format_rate(row["success"]["ours"]) if "ours" in row["success"] else "",
        "differing scenes": lambda row: "" if row["differing"] is None else row["differing"],
    }
    pairs = {
        "episodes": lambda test: test["episodes"],
        "arms": lambda test: " and ".join(f"`{name}`" for name in test["pair"]),
        "only one of them succeeds on": lambda test: " and ".join(map(str, test["only"])),
        "p, Holm's p": lambda test: f"{test['p']:.2g}, {test['holm_p']:.2g}",
    }
    return f"{table(columns, found['entries'])}\n{table(pairs, found['tests'])}\nMeasured by {origin(found)}.\n"


def aloha_published() -> str:
    """Published success on ALOHA's transfer cube."""
    with open(PUBLISHED.with_name("aloha_transfer_cube.csv")) as file:
        rows = list(csv.DictReader(file))
    columns = {name: lambda row, name=name: row[name] for name in ("policy", "data", "percent", "episodes", "source")}
    return table(columns, rows)


# Name between the marks of README.md and docs/*.md -> its content.
SECTIONS: dict[str, Callable[[], str]] = {
    "aim-tiny": lambda: success_table(read_evaluations(RESULTS / "aim-tiny")),
    "click-bell": lambda: success_table(read_evaluations(RESULTS / "click-bell")),
    "comparisons": lambda: comparison_table(COMPARISONS),
    "commands": lambda: bullets(
        {
            f"`{name}`, {title}": result
            for name in ("aim-tiny", "click-bell")
            for title, result in read_evaluations(RESULTS / name).items()
        }
        | comparison_origins(COMPARISONS)
    ),
    "grpo": grpo_tasks,
    "rewards": grpo_rewards,
    "schedules": lambda: study("schedules"),
    "few-steps": lambda: study("few_steps-hard"),
    "imagined": imagined_study,
    "noise": noise_study,
    "delays": lambda: study("delays"),
    "speed": speed,
    "experts": lambda: experts("tabletop"),
    "aloha-experts": lambda: experts("aloha"),
    "aloha": aloha,
    "aloha-published": aloha_published,
    "robotwin-experts": robotwin_experts,
    "robotwin-cost": robotwin_cost,
    "serving": serving,
    "dataset": dataset,
    "installation": installation,
    "budgets": budgets,
    "machines": machines,
    "cluster": cluster,
}

# -------------------------------------------------------------------------------------------------------------- cards


def eval_results(results: dict[str, dict[str, Any]]) -> list[EvalResult]:
    """Success rates as the metadata of a card hold them (`model-index`), between 0 and 1. Diagnostics, such as
    evaluations that are given the true maps, are in the card's table alone."""

    def metric(result: dict[str, Any], name: str, rate: float) -> EvalResult:
        return EvalResult(
            task_type="robotics",
            task_name="closed-loop manipulation",
            dataset_type=result["suite"],
            dataset_name=f"{SUITES.get(result['suite'], result['suite'])}, {result['split'].capitalize()}",
            dataset_split=result["split"],
            metric_type="success_rate",
            metric_name=f"success rate, {name}",
            metric_value=round(rate, 4),
        )

    entries = []
    for result in (results[title] for title in ("Easy", "Hard") if title in results):
        entries.append(metric(result, "mean", result["mean_rate"]))
        entries += [metric(result, name, task["rate"]) for name, task in result["tasks"].items()]
    return entries


def model_card(name: str, results: dict[str, dict[str, Any]], training: Path, repo_id: str, **words: str) -> ModelCard:
    """The card that model_cards/NAME.md is the text of.

    Args:
        results: of `read_evaluations`.
        training: the run's training.json; it may be missing.
        repo_id: the repo or folder that the card's examples load from.
        words: values of the text's other placeholders.
    """
    with PUBLISHED.open() as file:
        header, *rows = csv.reader(file)
    words |= {
        "repo_id": repo_id,
        "success_table": success_table(results),
        "commands": bullets(results),
        "training": training_text(training),
        "published_table": table({title: itemgetter(index) for index, title in enumerate(header)}, rows),
        "safety": (ROOT / "model_cards" / "parts" / "safety.md").read_text().strip(),
        "comparisons": comparison_table(CARD_COMPARISONS),
        "comparison_details": comparison_details(),
        "comparison_commands": bullets(comparison_origins(CARD_COMPARISONS)),
        "status": "" if results else NO_WEIGHTS,
    }
    card = ModelCard(Template((ROOT / "model_cards" / f"{name}.md").read_text()).substitute(words))
    if results:
        card.data.model_name = repo_id.split("/")[-1]
        card.data.eval_results = eval_results(results)
    return card


def run_card(
    name: str, folder: Path, repo_id: str, base_model: str | None = None, datasets: list[str] | None = None
) -> ModelCard:
    """The card of a training run.

    Args:
        name: of the text, model_cards/NAME.md.
        folder: the pipeline or adapters to publish; the run's training.json and evaluation/ lie beside it.
        repo_id: the repo that it is to be published as.
        base_model, datasets: ids of the model that it was trained from, and of its data; those of the text if not
            given.

    Raises:
        FileNotFoundError: if the run left no training.json or no results; the card would say nothing.
        ValueError: if a card of adapters has no `base_model`.
    """
    results = read_evaluations(folder.parent / "evaluation", "{}/results.json")
    training = folder.parent / "training.json"
    if not results or not training.exists():
        raise FileNotFoundError(
            f"{folder.parent} has {'no training.json' if results else 'no evaluation/NAME/results.json'}; train with "
            f"aim-hf train, and evaluate into {folder.parent / 'evaluation'}/easy with aim-hf evaluate."
        )
    words = {}
    if (folder / "adapter_config.json").exists():
        if base_model is None:
            raise ValueError("adapters need --base_model, the id of the repo that they were trained on.")
        config = json.loads((folder / "adapter_config.json").read_text())
        whole = ", ".join(f"`{name}`" for name in config["modules_to_save"])
        adapters = (
            f"rank {config['r']} (alpha {config['lora_alpha']:g}) on the video stream, with {whole} trained in full,"
        )
        words = {"adapters": adapters, "base_model": base_model}
    card = model_card(name, results, training, repo_id, **words)
    if base_model is not None:
        card.data.base_model = base_model
    if datasets is not None:
        card.data.datasets = datasets
    return card


def render() -> dict[Path, str]:
    """File -> the text that it should have."""
    texts = {}
    for name in (template.stem for template in ROOT.glob("model_cards/*.md")):
        if (ROOT / "checkpoints" / name).is_dir():
            results, training = read_evaluations(RESULTS / name), RESULTS / name / "training.json"
            card = model_card(name, results, training, f"checkpoints/{name}")
            texts[ROOT / "checkpoints" / name / "README.md"] = str(card)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()
        if SECTION.search(text):
            texts[path] = SECTION.sub(lambda match: match[1] + SECTIONS[match[2]]() + match[3], text)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", help="its text: NAME of model_cards/NAME.md")
    parser.add_argument("--folder", type=Path, help="a run's pipeline or adapter, which is to be published")
    parser.add_argument("--repo_id", help="the repo that it is to be published as, org/name")
    parser.add_argument("--base_model", help="id of the model that it was trained from")
    parser.add_argument("--datasets", nargs="+", help="ids of the data that it was trained on")
    args = parser.parse_args()
    if args.card is None:
        texts = render()
    elif args.folder is None or args.repo_id is None:
        parser.error("--card needs --folder and --repo_id")
    else:
        try:
            card = run_card(args.card, args.folder, args.repo_id, args.base_model, args.datasets)
        except (FileNotFoundError, ValueError) as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
        texts = {args.folder / "README.md": str(card)}
    for path, text in texts.items():
        path.write_text(text)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
