"""Writes model cards, and the README's and docs' tables, from result files: no number is typed by hand.

    python model_cards/render.py

benchmarks/results/NAME/*.json are the `results.json` of evaluations of the checkpoint NAME. Where model_cards/NAME.md
is the text of its card, checkpoints/NAME/README.md is written; in README.md, what stands between the marks of NAME;
in docs/data.md, the figures of benchmarks/results/dataset; in docs/rollout.md those of speed and of closed_loop.
"""

import json
import re
from pathlib import Path
from string import Template

ROOT = Path(__file__).parents[1]
COLUMNS = {
    "easy": "Easy",
    "hard": "Hard",
    "easy-true-maps": "Easy, given the true value maps",
    "easy-observations-only": "Easy, head without value maps (ablation)",
}
SECTION = re.compile(r"(<!-- results of ([\w-]+) -->\n).*?(<!-- end of results -->\n)", re.DOTALL)


def read_results(folder: Path) -> dict[str, dict]:
    """Evaluation -> content of its results.json, for those of `COLUMNS` that are in `folder`."""
    paths = {name: folder / f"{name}.json" for name in COLUMNS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def success_table(results: dict[str, dict]) -> str:
    """Success rates of each task with their 95 % Wilson intervals, and the first maps' peaks on Easy."""

    def cell(task: dict) -> str:
        low, high = (round(100 * bound) for bound in task["wilson"])
        return f"{task['rate']:.0%} ({task['successes']}/{task['episodes']}; {low} to {high})"

    def peaks(entry: dict) -> str:
        peak = entry["first_chunk_peak_within_10_percent"]
        return f"{peak['share']:.0%} of {peak['count']}"

    rows = [["task", *(COLUMNS[name] for name in results), "first value map's peak on the contact, Easy"]]
    for task in results["easy"]["tasks"]:
        cells = [cell(result["tasks"][task]) for result in results.values()]
        rows.append([f"`{task}`", *cells, peaks(results["easy"]["tasks"][task])])
    means = [f"**{result['mean_rate']:.0%}**" for result in results.values()]
    if len(results["easy"]["tasks"]) > 1:
        rows.append(["mean", *means, peaks(results["easy"])])
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def commands(results: dict[str, dict]) -> str:
    """The command, commit and hardware of each evaluation."""
    lines = []
    for name, result in results.items():
        hardware = result["hardware"]
        machine = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['cores']} cores"
        lines.append(f"- {COLUMNS[name]}: `{result['command']}` (commit {result['commit'][:10]}, {machine})\n")
    return "".join(lines)


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


def render() -> dict[Path, str]:
    """File -> the text that it should have."""
    texts = {}
    for template in ROOT.glob("model_cards/*.md"):
        results = read_results(ROOT / "benchmarks" / "results" / template.stem)
        words = {"success_table": success_table(results), "commands": commands(results)}
        texts[ROOT / "checkpoints" / template.stem / "README.md"] = Template(template.read_text()).substitute(words)

    def section(match: re.Match) -> str:
        results = read_results(ROOT / "benchmarks" / "results" / match[2])
        return match[1] + success_table(results) + match[3]

    figures = ROOT / "benchmarks" / "results" / "dataset"
    data = (ROOT / "docs" / "data.md").read_text()
    texts[ROOT / "docs" / "data.md"] = SECTION.sub(lambda match: match[1] + data_figures(figures) + match[3], data)
    measured = ROOT / "benchmarks" / "results"
    figures_of = {
        "speed": lambda: speed_figures(measured),
        "schedules": lambda: study_figures(measured / "closed_loop" / "schedules.json"),
        "delays": lambda: study_figures(measured / "closed_loop" / "delays.json"),
    }
    rollout = (ROOT / "docs" / "rollout.md").read_text()
    texts[ROOT / "docs" / "rollout.md"] = SECTION.sub(lambda m: m[1] + figures_of[m[2]]() + m[3], rollout)
    texts[ROOT / "README.md"] = SECTION.sub(section, (ROOT / "README.md").read_text())
    return texts


if __name__ == "__main__":
    for path, text in render().items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
