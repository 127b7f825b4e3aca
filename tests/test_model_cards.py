"""Cards and the README say what the result files say, in metadata that the Hub understands."""

import json
import re
import shutil
from pathlib import Path

import cost_tables
import pytest
import render
import success_tables
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from aim_hf import AIMConfig
from aim_hf.evaluation.statistics import PEAKS
from aim_hf.hub import check_card
from aim_hf.model.checkpoint import fingerprint
from aim_hf.model.modeling_aim import AIMForWorldAction
from aim_hf.model.presets import PRESETS

ROOT = Path(__file__).parents[1]


def test_cards_and_readme_are_what_the_results_say():
    for path, text in render.render().items():
        assert path.read_text() == text, f"{path} and the results disagree: run python model_cards/render.py"


def test_no_mark_of_results_is_overlooked():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text()
        assert len(render.SECTION.findall(text)) == text.count("<!-- results of "), path


def test_a_table_of_results():
    def task(successes):
        return {
            "rate": successes / 50,
            "successes": successes,
            "episodes": 50,
            "wilson": [0.1, 0.251],
            "first_chunk_peak_within_10_percent": {"share": 0.98, "count": 49},
        }

    whole = {"mean_rate": 0.3, "first_chunk_peak_within_10_percent": {"share": 0.9, "count": 99}}
    results = {
        "Easy": whole | {"tasks": {"push": task(10), "pull": task(20)}},
        "Hard": whole | {"tasks": {"push": task(5), "pull": task(0)}, "mean_rate": 0.05},
    }
    lines = success_tables.success_table(results).splitlines()
    assert lines[0] == f"| task | Easy | Hard | {PEAKS}, Hard |"
    assert lines[2] == "| `push` | 20% (10/50; 10 to 25) | 10% (5/50; 10 to 25) | 98% of 49 |"
    assert lines[4] == "| mean | **30%** | **5%** | 90% of 99 |"
    results["Easy"]["tasks"] = {"lift": task(30), "push": task(10)}  # other tasks than on Hard
    lines = success_tables.success_table(results).splitlines()
    assert lines[2:] == [
        "| `lift` | 60% (30/50; 10 to 25) |  |  |",
        "| `push` | 20% (10/50; 10 to 25) | 10% (5/50; 10 to 25) | 98% of 49 |",
        "| `pull` |  | 0% (0/50; 10 to 25) | 98% of 49 |",
        "| mean | **30%** | **5%** | 90% of 99 |",
    ]


def test_episodes_in_which_only_one_of_two_results_succeeds():
    def result(push, pull, first=1):
        tasks = {"push": push, "pull": pull}
        return {"tasks": {name: {"seeds": [first, 2, 3], "outcomes": outcomes} for name, outcomes in tasks.items()}}

    change = success_tables.difference(result("110", "000"), result("100", "011"))
    assert (change["lost"], change["won"]) == (1, 2) and change["gain_points"] == pytest.approx(100 / 6)
    with pytest.raises(ValueError, match="other scenes"):
        success_tables.difference(result("110", "000"), result("110", "000", first=0))


def test_the_table_of_speed_names_the_machine_of_each_benchmark(monkeypatch):
    def read(name):
        return {"hardware": {"device": "cpu", "cpu": "A" if "rollout" in name else "B", "cores": 2, "threads": 1}}

    monkeypatch.setattr(cost_tables, "read", read)
    monkeypatch.setattr(cost_tables, "measured", lambda name: "2-layers" not in name)
    assert "(`rollout.py`: A, 2 cores; `latency.py`, `training.py`: B, 2 cores)" in cost_tables.speed()


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_metadata_of_aim_tiny_are_the_results():
    folder = ROOT / "checkpoints" / "aim-tiny"
    card = check_card(folder, "pipeline", files_of(folder))
    name, entries = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "aim-tiny" and entries == card.data.eval_results
    for split in ("easy", "hard"):
        results = json.loads((ROOT / "benchmarks" / "results" / "aim-tiny" / f"{split}.json").read_text())
        rates = {entry.metric_name: entry.metric_value for entry in entries if entry.dataset_split == split}
        expected = {"success rate, mean": results["mean_rate"]}
        expected |= {f"success rate, {task}": result["rate"] for task, result in results["tasks"].items()}
        assert rates == pytest.approx(expected, abs=1e-4)


def test_the_results_of_aim_tiny_are_of_the_weights_that_ship():
    measured = ROOT / "benchmarks" / "results" / "aim-tiny"
    weights = fingerprint(ROOT / "checkpoints" / "aim-tiny")
    for name in ("easy", "hard", "easy-true-maps"):
        assert json.loads((measured / f"{name}.json").read_text())["policy_sha256"] == weights, name


@pytest.fixture
def run(tmp_path) -> Path:
    """What a training run and its evaluation leave: results of aim-tiny, as if they were of the run."""
    measured = ROOT / "benchmarks" / "results" / "aim-tiny"
    for split in ("easy", "hard"):
        (tmp_path / "evaluation" / split).mkdir(parents=True)
        shutil.copy(measured / f"{split}.json", tmp_path / "evaluation" / split / "results.json")
    shutil.copy(measured / "training.json", tmp_path)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "adapter").mkdir()
    adapters = {"r": 64, "lora_alpha": 64.0, "modules_to_save": ["action_head", "value_noise_token"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapters))
    return tmp_path


def test_a_run_fills_the_card_of_the_full_size(run):
    card = render.run_card("aim-wan2.2-ti2v-5b", run / "pipeline", "org/aim", datasets=["org/aim-robotwin"])
    (run / "pipeline" / "README.md").write_text(str(card))
    card = check_card(run / "pipeline", "pipeline", {"README.md"})
    assert card.data.base_model == "Wan-AI/Wan2.2-TI2V-5B-Diffusers" and card.data.datasets == ["org/aim-robotwin"]
    assert {entry.dataset_split for entry in card.data.eval_results} == {"easy", "hard"}
    assert "No weights" not in card.text and 'from_pretrained("org/aim"' in card.text
    results = json.loads((run / "evaluation" / "easy" / "results.json").read_text())
    training = json.loads((run / "training.json").read_text())
    for origin in (results, training):
        assert origin["command"] in card.text and origin["commit"][:10] in card.text
    assert f"{training['steps']:,} steps of stage 1: " in card.text
    (run / "training.json").write_text(json.dumps(training | {"seeds": {"train": [0, 9]}}))  # of aim-hf train-grpo
    card = render.run_card("aim-wan2.2-ti2v-5b", run / "pipeline", "org/aim", datasets=["org/aim-robotwin"])
    assert f"{training['steps']:,} steps of stage 2: " in card.text and "stage 1: " not in card.text


def test_without_a_run_the_card_says_that_there_are_no_weights(tmp_path):
    card = render.model_card("aim-wan2.2-ti2v-5b", {}, tmp_path, "org/aim")
    assert "**No weights of this model exist yet, and nothing was measured.**" in card.text
    assert card.data.eval_results is None and "Nothing was trained yet" in card.text
    # Numbers of the paper, nowhere but under the words that say whose they are.
    published = card.text.index("Published numbers of the paper, not measured by this project")
    end = card.text.index("## Training")
    assert "| average | 62.2 |" in card.text[published:end]
    assert not re.search(r"\d+\.\d %|\d+%|\| \d+\.\d \|", card.text[:published] + card.text[end:])
    with pytest.raises(FileNotFoundError, match="evaluate into"):
        render.run_card("aim-wan2.2-ti2v-5b", tmp_path / "pipeline", "org/aim")


def test_the_card_of_adapters(run):
    with pytest.raises(ValueError, match="--base_model"):
        render.run_card("lora", run / "adapter", "org/aim-lora")
    card = render.run_card("lora", run / "adapter", "org/aim-lora", "org/aim", ["org/my-robot"])
    (run / "adapter" / "README.md").write_text(str(card))
    card = check_card(run / "adapter", "adapters", {"README.md"})
    assert card.data.library_name == "peft" and card.data.base_model == "org/aim"
    assert "rank 64 (alpha 64)" in card.text and 'PeftModel.from_pretrained(base, "org/aim-lora")' in card.text


def test_the_stated_size_is_that_of_the_preset():
    with torch.device("meta"):
        model = AIMForWorldAction(AIMConfig(**PRESETS["wan2.2-ti2v-5b"]))
    size = sum(parameter.numel() for parameter in model.parameters())
    text = ModelCard((ROOT / "model_cards" / "aim-wan2.2-ti2v-5b.md").read_text()).text
    assert f"| {size / 1e9:.1f} B parameters |" in text
