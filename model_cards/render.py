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

import csv
import json
import re
from collections.abc import Callable
from operator import attrgetter, itemgetter
from pathlib import Path
from string import Template
from typing import Any

import cost_tables
import evidence_tables
import success_tables
from huggingface_hub import EvalResult, ModelCard
from markdown_tables import RESULTS, ROOT, bullets, origin, table
from success_tables import read_evaluations, success_table

from aim_hf.commands import PathParser

SECTION = re.compile(r"(<!-- results of (\S+) -->\n).*?(<!-- end of results -->\n)", re.DOTALL)
SUITES = {"tabletop": "the tabletop simulator of aim-hf", "robotwin": "RoboTwin 2.0", "aloha": "gym-aloha"}
NO_WEIGHTS = """**No weights of this model exist yet, and nothing was measured.** This page is a template, which the
results of a training run fill.
"""

# Name between the marks of README.md and docs/*.md -> its content.
SECTIONS: dict[str, Callable[[], str]] = {
    "aim-tiny": lambda: success_table(read_evaluations(RESULTS / "aim-tiny")),
    "aim-tiny-0.1": lambda: success_table(read_evaluations(RESULTS / "aim-tiny-0.1")),
    "click-bell": lambda: success_table(read_evaluations(RESULTS / "click-bell")),
    "comparisons": success_tables.comparison_table,
    "commands": lambda: bullets(
        {
            f"`{name}`, {title}": result
            for name in ("aim-tiny", "aim-tiny-0.1", "click-bell")
            for title, result in read_evaluations(RESULTS / name).items()
        }
        | success_tables.comparison_origins()
    ),
    "grpo": success_tables.grpo_tasks,
    "rewards": success_tables.grpo_rewards,
    "few-steps": lambda: success_tables.study("few_steps-hard"),
    "few-steps-0.1": lambda: success_tables.study("few_steps-0.1-hard"),
    "imagined": success_tables.imagined_study,
    "evidence-rates": evidence_tables.rates,
    "evidence-tasks": evidence_tables.tasks,
    "evidence-tests": evidence_tables.tests,
    "evidence-interventions": evidence_tables.interventions,
    "evidence-peaks": evidence_tables.peaks,
    "noise": success_tables.noise_study,
    "delays": success_tables.delays,
    "replanning": lambda: success_tables.study("replanning-hard"),
    "signals": success_tables.signals,
    "speed": cost_tables.speed,
    "chunks": cost_tables.chunks,
    "paired-latency": cost_tables.paired_latency,
    "experts": lambda: success_tables.experts("tabletop"),
    "aloha-experts": lambda: success_tables.experts("aloha"),
    "aloha": success_tables.aloha,
    "aloha-published": success_tables.aloha_published,
    "robotwin-experts": success_tables.robotwin_experts,
    "robotwin-cost": cost_tables.robotwin_cost,
    "serving": cost_tables.serving,
    "dataset": cost_tables.dataset,
    "installation": cost_tables.installation,
    "budgets": cost_tables.budgets,
    "machines": cost_tables.machines,
    "cluster": cost_tables.cluster,
    "full-size": cost_tables.full_size,
    "gpu-time": cost_tables.gpu_time,
}


def training_text(folder: Path) -> str:
    """Steps and origin of the training runs that left training*.json in `folder`, in the order of their names."""

    def text(run: dict[str, Any]) -> str:
        stage = 2 if "seeds" in run else 1  # only stage 2 has scenes to practise on
        return f"{run['steps']:,} steps of stage {stage}: {origin(run)}.\n"

    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("training*.json"), key=attrgetter("stem"))]
    return "\n".join(map(text, runs)) or "Nothing was trained yet.\n"


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


def model_card(name: str, results: dict[str, dict[str, Any]], run: Path, repo_id: str, **words: str) -> ModelCard:
    """The card that model_cards/NAME.md is the text of.

    Args:
        results: of `read_evaluations`.
        run: the folder with training.json; it may be missing.
        repo_id: the repo or folder that the card's examples load from.
        words: values of the text's other placeholders.
    """
    with (success_tables.PUBLISHED / "table2_robotwin.csv").open() as file:
        header, *rows = csv.reader(file)
    words |= {
        "repo_id": repo_id,
        "success_table": success_table(results),
        "commands": bullets(results),
        "training": training_text(run),
        "published_table": table({title: itemgetter(index) for index, title in enumerate(header)}, rows),
        "safety": (ROOT / "model_cards" / "parts" / "safety.md").read_text().strip(),
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
    trained = (folder.parent / "training.json").exists()
    if not results or not trained:
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
    card = model_card(name, results, folder.parent, repo_id, **words)
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
            card = model_card(name, read_evaluations(RESULTS / name), RESULTS / name, f"checkpoints/{name}")
            texts[ROOT / "checkpoints" / name / "README.md"] = str(card)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()
        if SECTION.search(text):
            texts[path] = SECTION.sub(lambda match: match[1] + SECTIONS[match[2]]() + match[3], text)
    return texts


def main() -> None:
    parser = PathParser(description=__doc__)
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
