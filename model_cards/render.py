"""Writes model cards, and the README's and docs' tables, from result files: no number is typed by hand.

    python model_cards/render.py     # this repository's own

benchmarks/results/NAME/*.json are the `results.json` of evaluations of the checkpoint NAME. Where model_cards/NAME.md
is the text of its card, checkpoints/NAME/README.md is written; in README.md, what stands between the marks of NAME.
From benchmarks/results come in docs/data.md the figures of dataset; in docs/installation.md those of installation.json
and installation-before.json; in docs/rollout.md those of speed and of closed_loop; in docs/stage2.md and, in a
sentence, in README.md those of grpo_tabletop.json and grpo; in docs/stage2.md what stage 2 and leaving out noise
brought to aim-tiny.

    python model_cards/render.py --card aim-wan2.2-ti2v-5b --folder runs/aim/pipeline --repo_id org/aim \\
        --datasets org/aim-robotwin
    python model_cards/render.py --card lora --folder runs/aim/adapter --repo_id org/aim-lora --base_model org/aim \\
        --datasets org/my-robot

writes the card of what a training run made, FOLDER/README.md, from what lies beside FOLDER: `training.json` of
aim-hf train, and evaluation/NAME/results.json of aim-hf evaluate (NAME: easy, hard, easy-true-maps ...).
"""

import argparse
import csv
import json
import re
from pathlib import Path
from string import Template

from huggingface_hub import EvalResult, ModelCard

from aim_hf.evaluation.comparison import format_comparison, mean_rate
from aim_hf.evaluation.statistics import format_peaks, format_rate
from aim_hf.utils.provenance import machine

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "src" / "aim_hf" / "evaluation" / "published"
COLUMNS = {
    "easy": "Easy",
    "hard": "Hard",
    "easy-true-maps": "Easy, given the true value maps",
}
SUITES = {"tabletop": "the tabletop simulator of aim-hf", "robotwin": "RoboTwin 2.0"}
NOT_MEASURED = "Nothing was measured yet.\n"
NO_WEIGHTS = """**No weights of this model exist yet, and nothing was measured.** This page is a template, which the
results of a training run fill.
"""
SECTION = re.compile(r"(<!-- results of ([\w-]+) -->\n).*?(<!-- end of results -->\n)", re.DOTALL)


def read_results(folder: Path, name_of: str = "{}.json") -> dict[str, dict]:
    """Evaluation -> content of its results.json, for those of `COLUMNS` that are in `folder`, as `name_of` names
    them."""
    paths = {name: folder / name_of.format(name) for name in COLUMNS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def success_table(results: dict[str, dict]) -> str:
    """Success rates of each task with their 95 % Wilson intervals, and the first maps' peaks on Easy."""
    if not results:
        return NOT_MEASURED

    first = next(iter(results))
    rows = [
        ["task", *(COLUMNS[name] for name in results), f"first value map's peak near the contact, {COLUMNS[first]}"]
    ]
    for task in results[first]["tasks"]:
        cells = [format_rate(result["tasks"][task]) for result in results.values()]
        rows.append([f"`{task}`", *cells, format_peaks(results[first]["tasks"][task])])
    means = [f"**{result['mean_rate']:.0%}**" for result in results.values()]
    if len(results[first]["tasks"]) > 1:
        rows.append(["mean", *means, format_peaks(results[first])])
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def commands(results: dict[str, dict]) -> str:
    """The command, commit and hardware of each evaluation."""
    return "".join(f"- {COLUMNS[name]}: {_origin(result)}\n" for name, result in results.items())


def paired_text(folder: Path, name: str, names: tuple[str, str], heading: str, tables: bool) -> str:
    """What `aim-hf compare` found on the same scenes, FOLDER/NAME-easy.json and NAME-hard.json: a sentence under
    the `heading`, and with `tables` each split's, which call the two `names`. Nothing if it wasn't measured."""
    sentences, parts = [], []
    for split in ("easy", "hard"):
        path = folder / f"{name}-{split}.json"
        if not path.exists():
            return ""
        compared = json.loads(path.read_text())
        rates = [f"{mean_rate(compared, side):.1%}" for side in ("before", "after")]
        sentences.append(
            f"{compared['gain_points']:+.1f} points on {split.capitalize()} ({' to '.join(rates)}; McNemar's p = "
            f"{compared['mcnemar_p']:.2g}, {_episodes(compared)} episodes)"
        )
        origins = [f"- {called}: {_origin(compared[side])}\n" for side, called in zip(("before", "after"), names)]
        parts.append(f"{split.capitalize()}:\n\n{format_comparison(compared, names)}\n{''.join(origins)}")
    figures = ",\n".join(sentences)
    return "\n".join([f"{heading}\n{figures}.\n", *(parts if tables else [])])


def noise_text(folder: Path, tables: bool = False) -> str:
    """What leaving out the noise of actions is worth, as `paired_text` has it."""
    heading = """What leaving out the noise that actions start from (`action_noise_scale` 0) is worth, after
stage 1, on the same scenes:"""
    return paired_text(folder, "noise", ("from noise", "without"), heading, tables)


def stage2_text(folder: Path, tables: bool = False) -> str:
    """What stage 2 brought, as `paired_text` has it, with the noise that actions start from and without."""
    names = ("after stage 1", "after stage 2")
    texts = (
        paired_text(folder, "stage2", names, "What stage 2 brought, on the same scenes:", tables),
        paired_text(folder, "stage2-without-noise", names, "And where both act without that noise:", tables),
    )
    return "\n".join(filter(None, texts))


def ablation_text(folder: Path, tables: bool = False) -> str:
    """What the value maps are worth, likewise."""
    heading = """What the value maps are worth, after stage 1, against the same network, trained on the same samples,
whose head sees observations alone (it isn't blind to the words: the observations' features have read them), on the
same scenes:"""
    return paired_text(folder, "value-maps", ("without value maps", "with"), heading, tables)


def _origin(result: dict) -> str:
    return f"`{result['command']}` (commit {(result['commit'] or 'unknown')[:10]}, {machine(result['hardware'])})"


def training_text(path: Path) -> str:
    """Steps and origin of stage 1, from its training.json, and of stage 2 if stage2-hard.json lies beside it."""
    if not path.exists():
        return "Nothing was trained yet.\n"
    run = json.loads(path.read_text())
    text = f"{run['steps']:,} steps of stage 1: {_origin(run)}.\n"
    stage2 = path.with_name("stage2-hard.json")
    if stage2.exists():
        run = json.loads(stage2.read_text())["training"]
        text += (
            f"\n{run['steps']:,} steps of stage 2, on {run['episodes']:,} episodes of practice in "
            f"{60 * run['hours']:.0f} minutes: {_origin(run)}.\n"
        )
    return text


def published_table(path: Path) -> str:
    """A table of evaluation/published in Markdown, rates in percent as the paper gives them."""
    rows = list(csv.reader(path.read_text().splitlines()))
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def adapters_text(config: dict) -> str:
    """What an adapter_config.json says of rank and of what was trained in full."""
    whole = ", ".join(f"`{name}`" for name in config["modules_to_save"])
    return f"rank {config['r']} (alpha {config['lora_alpha']:g}) on the video stream, with {whole} trained in full,"


def eval_results(results: dict[str, dict]) -> list[EvalResult]:
    """Success rates as the metadata of a card hold them (`model-index`), between 0 and 1. Diagnostics, such as
    evaluations that are given the true maps, are in the card's table alone."""

    def metric(result: dict, name: str, rate: float) -> EvalResult:
        return EvalResult(
            task_type="robotics",
            task_name="closed-loop manipulation",
            dataset_type=result["suite"],
            dataset_name=f"{SUITES[result['suite']]}, {result['split'].capitalize()}",
            dataset_split=result["split"],
            metric_type="success_rate",
            metric_name=f"success rate, {name}",
            metric_value=round(rate, 4),
        )

    measured = [results[name] for name in ("easy", "hard") if name in results]
    return [
        entry
        for result in measured
        for entry in (
            metric(result, "mean", result["mean_rate"]),
            *(metric(result, name, task["rate"]) for name, task in result["tasks"].items()),
        )
    ]


def model_card(name: str, results: dict[str, dict], training: Path, repo_id: str, **words: str) -> ModelCard:
    """The card that model_cards/NAME.md is the text of.

    Args:
        results: of `read_results`.
        training: the run's training.json; it may be missing.
        repo_id: where the card's examples load from.
        words: more of what the text leaves open.
    """
    words |= {
        "repo_id": repo_id,
        "success_table": success_table(results),
        "commands": commands(results),
        "training": training_text(training),
        "published_table": published_table(PUBLISHED / "table2_robotwin.csv"),
        "safety": (ROOT / "model_cards" / "parts" / "safety.md").read_text().strip(),
        "noise": noise_text(ROOT / "benchmarks" / "results" / name, tables=True),
        "stage2": stage2_text(ROOT / "benchmarks" / "results" / name, tables=True),
        "ablation": ablation_text(ROOT / "benchmarks" / "results" / name, tables=True),
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
    """The card of what a training run made.

    Args:
        name: of the text, model_cards/NAME.md.
        folder: what is to be published; the run's training.json and evaluation/ lie beside it.
        repo_id: what it is to be published as.
        base_model, datasets: ids of what it was trained from and on; those of the text if not given.

    Raises:
        FileNotFoundError: if the run left no training.json or no results; the card would say nothing.
        ValueError: if a card of adapters has no `base_model`.
    """
    results = read_results(folder.parent / "evaluation", "{}/results.json")
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
        words["adapters"] = adapters_text(json.loads((folder / "adapter_config.json").read_text()))
        words["base_model"] = base_model
    card = model_card(name, results, training, repo_id, **words)
    if base_model is not None:
        card.data.base_model = base_model
    if datasets is not None:
        card.data.datasets = datasets
    return card


def data_figures(folder: Path) -> str:
    """What collecting, storing and reading cost, and what 30,000 episodes of RoboTwin would, as Markdown."""
    collect, size, read = (json.loads((folder / f"{name}.json").read_text()) for name in ("collect", "size", "read"))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in collect["shares"].items())
    frames, hard = size["frames_of_an_episode"], size["hard"]
    after = frames * (hard["seconds_per_frame"]["labelling"] + hard["seconds_per_frame"]["encoding"])
    rows = [
        ["collecting `tabletop`, one core", f"{collect['episodes_per_hour_and_core']:,.0f} episodes an hour"],
        ["of which", shares],
        ["labelling over simulating and rendering", f"{collect['labelling_over_simulating_and_rendering']:.1%}"],
    ]
    rows += [
        [
            f"an episode of {frames} frames, three views of 320 x 240, {split.capitalize()}",
            f"{size[split]['megabytes_per_episode']:.2f} MB (RGB {size[split]['bytes_per_frame']['rgb'] / 1e3:.1f} kB "
            f"and value maps {size[split]['bytes_per_frame']['value'] / 1e3:.1f} kB a frame)",
        ]
        for split in ("easy", "hard")
    ]
    rates = {name: f"{rate:.1f}" for name, rate in read["windows_per_second"].items()}
    whole = read["windows_over_whole_episodes"]
    rows += [
        ["random windows, maps rendered", f"{rates['windows_rendered']} a second"],
        ["random windows, maps decoded", f"{rates['windows_decoded']} a second"],
        ["decoding the whole episode for each", f"{rates['whole_episodes']} a second: {whole:.1f} times slower"],
    ]
    if "lerobot" in rates:
        ratio = read["windows_decoded_over_lerobot"]
        rows.append(["lerobot's own reader, maps decoded", f"{rates['lerobot']} a second: {ratio:.1f} times slower"])
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    plan = "".join(
        f"| {seconds} s | "
        + " | ".join(f"{30_000 * (seconds / rate + after) / 86_400:.1f}" for rate in (0.9, 0.6, 0.3))
        + " |\n"
        for seconds in (20, 60, 120)
    )
    hardware = collect["hardware"]
    return (
        f"| what | measured |\n|---|---|\n{table}\n"
        f"Measured on {hardware['cpu']}, {hardware['cores']} cores, one process; commands and commits are in "
        "`benchmarks/results/dataset`.\n\n"
        f"30,000 episodes of {frames} frames are {hard['gigabytes_of_30000_episodes']:.0f} GB at Hard's size. "
        f"Labelling and encoding one takes {after:.1f} s of a core; what RoboTwin's own simulation, ray tracing and "
        "planning takes of a GPU has not been measured here. Days of one process, by that time for a seed and by the "
        "share of seeds on which the expert succeeds:\n\n"
        f"| a seed takes | 90 % succeed | 60 % | 30 % |\n|---|---|---|---|\n{plan}"
    )


SIZES = {"tiny": "`tiny`", "tiny-x4": "`tiny`, 4 times wider", "wan2.2-ti2v-5b-2-layers": "5B's width, two layers"}
RATIOS = {
    "uncached_over_cached_at_16": ("rollout", "a chunk after 16 others without a cache, over ours"),
    "flatness_after_window": ("rollout", "the 32nd chunk over the first one with a full window"),
    "lingbot_settings_over_ours": ("latency", "a chunk at LingBot-VA's settings over ours at our defaults"),
    "lingbot_settings_over_ours_counted": ("latency", "the same, operations counted, all layers"),
    "backbone_action_loop_over_ours": ("latency", "the action steps through the video backbone, over ours"),
    "backbone_action_loop_over_ours_counted": ("latency", "the same, operations counted, all layers"),
    "action_step_over_video_step": ("latency", "an action step over a video step"),
    "packed_over_single_chunk": ("training", "supervised tokens a second, eight chunks packed over one at a time"),
}


def speed_figures(results: Path) -> str:
    """The benchmarks' ratios at each size that was measured, as Markdown."""
    measured = {
        size: {
            kind: json.loads(path.read_text())
            for kind in ("rollout", "latency", "training")
            if (path := results / kind / f"{size}.json").exists()
        }
        for size in SIZES
    }
    rows = [["", *SIZES.values()], ["---"] * (len(SIZES) + 1)]
    for name, (kind, meaning) in RATIOS.items():
        numbers = [of.get(kind, {}).get(name) for of in measured.values()]
        rows.append([meaning, *("" if number is None else f"{number:.3g}" for number in numbers)])
    hardware = measured["tiny"]["latency"]["hardware"]
    return (
        "".join(f"| {' | '.join(row)} |\n" for row in rows)
        + f"\nMeasured on {hardware['cpu']}, {hardware['cores']} cores, float32; alternatives in turn within one run. "
        "Times of each stage, commands and commits are in `benchmarks/results`.\n"
    )


def study_figures(path: Path) -> str:
    """A study of `benchmarks/closed_loop.py` as Markdown."""
    if not path.exists():
        return "Not measured yet.\n"
    study = json.loads(path.read_text())
    tasks = list(study["rows"][0]["tasks"])
    rows = [["setting", "success", "95 % interval", *(f"`{task}`" for task in tasks)], ["---"] * (len(tasks) + 3)]
    for row in study["rows"]:
        setting = ", ".join(f"`{name}` {value}" for name, value in row["setting"].items()) or "defaults"
        low, high = row["wilson"]
        rate = f"{row['rate']:.0%} ({row['successes']}/{row['episodes']})"
        rows.append([setting, rate, f"{low:.0%} to {high:.0%}", *(str(row["tasks"][task]) for task in tasks)])
    episodes = study["rows"][0]["episodes"] // len(tasks)
    return (
        "".join(f"| {' | '.join(row)} |\n" for row in rows)
        + f"\n`{study['policy']}` on {study['split'].capitalize()}, {episodes} episodes a task and setting, the same "
        f"seeds for all of them: `{study['command']}` (commit {study['commit'][:10]}).\n"
    )


NOISE_STUDIES = {
    "noise-easy.json": "Easy",
    "noise-hard.json": "Hard",
    "noise-stage1-hard.json": "Hard, as stage 1 had left it",
}


def noise_figures(folder: Path) -> str:
    """What `action_noise_scale` makes of success, by split and stage of training, as Markdown."""
    if not all((folder / name).exists() for name in NOISE_STUDIES):
        return NOT_MEASURED
    studies = {title: json.loads((folder / name).read_text()) for name, title in NOISE_STUDIES.items()}
    # A setting that doesn't name it is that of the defaults, 1.
    by_scale = {
        title: {row["setting"].get("action_noise_scale", 1.0): row for row in study["rows"]}
        for title, study in studies.items()
    }
    scales = list(by_scale["Hard"])
    rows = [["`action_noise_scale`", *(f"{scale:g}" for scale in scales)], ["---"] * (len(scales) + 1)]
    rows += [[title, *(format_rate(row_of[scale]) for scale in scales)] for title, row_of in by_scale.items()]
    first = by_scale["Hard"][scales[0]]
    episodes = first["episodes"] // len(first["tasks"])
    return (
        "".join(f"| {' | '.join(row)} |\n" for row in rows)
        + f"\n{episodes} episodes a task and setting, the same seeds for all of a split; 95 % intervals:\n\n"
        + "".join(f"- {title}: {_origin(study)}\n" for title, study in studies.items())
    )


REWARDS = {
    "grpo_tabletop.json": "both",
    "grpo/success.json": "success alone",
    "grpo/value_map.json": "value map alone",
    "grpo/without-noise.json": "both, `action_noise_scale` 0",
}

WORLDS = {
    True: "All weights that RGB and value maps depend on are stored unchanged: both imagine the same, within the "
    "rounding of float32.",
    False: "**RGB or value maps are not the same before and after.**",
}


def grpo_figures(results: Path) -> str:
    """What stage 2 brought, task by task and for each choice of rewards, and what it took, as Markdown."""
    runs = {
        rewards: json.loads((results / name).read_text())
        for name, rewards in REWARDS.items()
        if (results / name).exists()
    }
    if "both" not in runs:  # the run that the others are set beside
        return NOT_MEASURED
    main, learner = runs["both"], json.loads((results / "grpo" / "tiny.json").read_text())
    training = main["training"]
    header = ["rewards", "before", "after", "gain, points", "McNemar's p", "value map's reward", "value hits", "KL"]
    rows = [header, ["---"] * len(header)]
    for rewards, run in runs.items():
        first, last = run["training"]["first"], run["training"]["last"]
        reward, hit = "rewards/value_map_reward/mean", "rollout/value_hit"
        rows.append(
            [
                rewards,
                *(f"{mean_rate(run, side):.1%}" for side in ("before", "after")),
                f"{run['gain_points']:+.1f}",
                f"{run['mcnemar_p']:.2g}",
                f"{first[reward]:.2f} to {last[reward]:.2f}",
                f"{first[hit]:.0%} to {last[hit]:.0%}",
                f"{last['kl']:.2f}",
            ]
        )
    ablations = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"""{format_comparison(main)}
{_episodes(main)} episodes, on seeds from {main["seeds"][0]:,} on, before and
after {training["steps"]} steps of GRPO on {training["episodes"]:,} episodes of practice, which took
{60 * training["hours"]:.0f} minutes ({machine(training["hardware"])}; commit {training["commit"][:10]}; commands
below). {WORLDS[main["same_world"]]}

The same budget and seeds, by reward; the last three columns are from rollouts, the first fifth of the run against the
last, and of the divergence the last:

{ablations}
What the run with both took: {training["control_steps_per_core_second"]:.0f} control steps a second and core while
simulating, which was {training["simulation_share"]:.0%} of its time. A learner that trains all denoising steps is
{learner["plain_over_ours"]:.1f} times as fast as one that runs the video branch again for each of them, and
{learner["replayed_over_ours"]:.1f} times as one that replays its cache (`benchmarks/grpo.py`).
"""


def still_practice_text(results: Path) -> str:
    """What practice without noise brought to aim-tiny, on the seeds that settings are chosen by, as a sentence."""
    run = json.loads((results / "grpo" / "aim-tiny-without-noise.json").read_text())
    rates = [f"{mean_rate(run, side):.1%}" for side in ("before", "after")]
    return (
        f"The same practice without noise, from stage 1 and judged without noise: {rates[0]} to {rates[1]} on Hard\n"
        f"(McNemar's p = {run['mcnemar_p']:.2g}, {_episodes(run)} episodes on the seeds that settings are chosen by, "
        f"from {run['seeds'][0]:,} on).\n"
    )


def _episodes(comparison: dict) -> int:
    """Of all tasks."""
    return sum(task["episodes"] for task in comparison["tasks"].values())


def grpo_headline(results: Path) -> str:
    """The run of both rewards, as what follows a colon in Markdown."""
    if not (results / "grpo_tabletop.json").exists():
        return NOT_MEASURED
    run = json.loads((results / "grpo_tabletop.json").read_text())
    training = run["training"]
    before, after = (f"{mean_rate(run, side):.0%}" for side in ("before", "after"))
    tasks = [f"`{name}`" for name in run["tasks"]]
    return f"""A checkpoint that was stopped early went from {before} to {after} of {_episodes(run)} held-out
episodes of {", ".join(tasks[:-1])} and {tasks[-1]} on Hard (McNemar's p = {run["mcnemar_p"]:.1g}), in
{60 * training["hours"]:.0f} minutes on {training["processes"]} cores.
"""


def installation_figures(measured: Path) -> str:
    """Packages, megabytes and seconds of import, of the core and of each extra, and of what there was before them."""
    now, before = (
        json.loads((measured / f"{name}.json").read_text()) for name in ("installation", "installation-before")
    )
    rows = [["installed", "packages", "MB", "`import aim_hf`", "`from aim_hf import AIMPipeline`", "`import torch`"]]
    rows.append(["---"] * len(rows[0]))
    named = {f"`{name}`" if name != "core" else name: one for name, one in now["extras"].items()}
    named[f"before there were extras ({before['project_commit'][:10]})"] = before["extras"]["core"]
    for name, one in named.items():
        seconds = [*one["import_seconds"].values(), one["torch_seconds"]]
        cells = [one["packages"], f"{one['megabytes']:,}", *(f"{value:.2f} s" for value in seconds)]
        rows.append([name, *map(str, cells)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\nMeasured by `{now['command']}` (commit {now['commit'][:10]}, {machine(now['hardware'])}).\n"


def render() -> dict[Path, str]:
    """File -> the text that it should have."""
    texts = {}
    for name in (template.stem for template in ROOT.glob("model_cards/*.md")):
        measured, checkpoint = ROOT / "benchmarks" / "results" / name, ROOT / "checkpoints" / name
        if checkpoint.is_dir():
            card = model_card(name, read_results(measured), measured / "training.json", f"checkpoints/{name}")
            texts[checkpoint / "README.md"] = str(card)

    def section(match: re.Match) -> str:
        if match[2] == "grpo":
            return match[1] + grpo_headline(ROOT / "benchmarks" / "results") + match[3]
        folder = ROOT / "benchmarks" / "results" / match[2]
        texts = (success_table(read_results(folder)), noise_text(folder), stage2_text(folder), ablation_text(folder))
        return match[1] + "\n".join(filter(None, texts)) + match[3]

    figures = ROOT / "benchmarks" / "results" / "dataset"
    data = (ROOT / "docs" / "data.md").read_text()
    texts[ROOT / "docs" / "data.md"] = SECTION.sub(lambda match: match[1] + data_figures(figures) + match[3], data)
    measured = ROOT / "benchmarks" / "results"
    aim_tiny = measured / "aim-tiny"
    figures_of = {
        "grpo": lambda: grpo_figures(measured),
        "aim-tiny": lambda: "\n".join([noise_text(aim_tiny), stage2_text(aim_tiny), still_practice_text(measured)]),
        "speed": lambda: speed_figures(measured),
        "schedules": lambda: study_figures(measured / "closed_loop" / "schedules.json"),
        "noise": lambda: noise_figures(measured / "closed_loop"),
        "delays": lambda: study_figures(measured / "closed_loop" / "delays.json"),
    }
    installation = (ROOT / "docs" / "installation.md").read_text()
    figures = installation_figures(measured)
    texts[ROOT / "docs" / "installation.md"] = SECTION.sub(lambda m: m[1] + figures + m[3], installation)
    rollout = (ROOT / "docs" / "rollout.md").read_text()
    texts[ROOT / "docs" / "rollout.md"] = SECTION.sub(lambda m: m[1] + figures_of[m[2]]() + m[3], rollout)
    stage2 = (ROOT / "docs" / "stage2.md").read_text()
    texts[ROOT / "docs" / "stage2.md"] = SECTION.sub(lambda m: m[1] + figures_of[m[2]]() + m[3], stage2)
    texts[ROOT / "README.md"] = SECTION.sub(section, (ROOT / "README.md").read_text())
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", help="its text: NAME of model_cards/NAME.md")
    parser.add_argument("--folder", type=Path, help="what is to be published: a run's pipeline or adapter")
    parser.add_argument("--repo_id", help="what it is to be published as, org/name")
    parser.add_argument("--base_model", help="id of what it was trained from")
    parser.add_argument("--datasets", nargs="+", help="ids of what it was trained on")
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
