"""Every code block of the README and the docs is run, with smaller numbers, or says why it isn't. The options of all
commands are parsed, also of those that aren't run."""

import argparse
import itertools
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aim_hf.commands import run as aim_hf

from ..envs.fixtures_robotwin import write_checkout

ROOT = Path(__file__).parents[2]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LAUNCH = re.compile(r"accelerate launch (--(multi_gpu|num_processes \d+|config_file \S+) )*")
FOLDERS = ("pipelines", "dataset_scripts", "checkpoints", "benchmarks", "model_cards", "scripts")


@dataclass
class Run:
    """A block that is run. smaller: what is replaced in it first, each of which must occur. before: Python that makes
    what the text around it takes for granted."""

    smaller: dict[str, str] = field(default_factory=dict)
    before: str = ""


@dataclass
class Left:
    """A block that isn't run here, and why."""

    reason: str


ROBOT = """
from aim_hf import AIMPipeline
from aim_hf.envs import make_environment
pipe = AIMPipeline.from_pretrained("checkpoints/aim-tiny")
env = make_environment("tabletop", "lift_pot", "easy")
observation = first_0 = first_1 = first = env.reset(seed=100_000_000)
done = False
def execute(chunk):
    global done, observations, actions
    results = [env.step(action) for action in chunk]
    done = True
    observations, actions = [result.observation for result in results[pipe.actions_per_frame - 1 :: 2]], chunk
    return observations
"""
ALONE = 'session = pipe.start("lift the pot")\nout = pipe(observation, session=session)\n'
SERVED = (
    ROBOT
    + """
import subprocess, time, urllib.request
from aim_hf.envs.poses import pack_endpose
from aim_hf.protocol.observations import write_images
command = [python, "-m", "aim_hf", "serve", "--policy", "checkpoints/aim-tiny", "--port", "PORT"]
server = subprocess.Popen(command)
while True:
    try:
        urllib.request.urlopen("http://127.0.0.1:PORT/healthz")
        break
    except OSError:
        assert server.poll() is None
        time.sleep(0.2)
first_images, pose = write_images([observation]), pack_endpose(observation)
drive = execute
def execute(chunk):
    return write_images(drive(chunk))
"""
)
LATENTS = """
from aim_hf.commands import run as command
command("collect --tasks click_bell --splits easy --episodes 1 --output_dir runs/episodes".split())
command("encode-latents --dataset runs/episodes --policy checkpoints/aim-tiny --output_dir runs/latents".split())
"""
FULL_SIZE = "the full size; tests/model/test_conversion.py, tests/data and tests/training run it at small width"

SCENARIOS: dict[str, list[Run | Left]] = {
    "README.md": [
        Left("it runs the tests"),
        Left("it installs; tests/test_wheel.py does, without a network"),
        Run(),
    ],
    "CONTRIBUTING.md": [
        Left("it runs the tests"),
        Left("needs a task of the reader's; tests/envs/test_tabletop_tasks.py has the suite's"),
        Left("needs a suite of the reader's"),
    ],
    "CHANGELOG.md": [],
    "docs/index.md": [],
    "docs/results.md": [Left("an hour of training on data that takes another to make")],
    "docs/reading_the_code.md": [],
    "docs/installation.md": [Left("it installs"), Left("it installs, as `make test-floor` does")],
    "docs/quickstart.md": [Run(), Run(), Run(), Run({"--episodes 20": "--episodes 1"})],
    "docs/how_it_works.md": [],
    "docs/file_formats.md": [Run(), Run()],
    "docs/evidence.md": [Left("a day of training; tests/evaluation/test_evidence.py runs it, smaller")],
    "docs/faq.md": [],
    "docs/data.md": [
        Run(),
        Run({"--splits easy hard --episodes 600": "--tasks stack_blocks_two --splits easy --episodes 2"}),
        Run({"--render 50 --simulate 50": "--render 1 --simulate 1"}),
        Left("tests/test_publish.py and tests/test_hub.py run it against a Hub"),
        Run({"org/aim-tabletop": "runs/episodes", "num_workers=4": "num_workers=0"}),
    ],
    "docs/own_robot.md": [
        Run(
            {"you/your-dataset": str(ROOT / "tests" / "data" / "fixtures" / "lerobot_v3")}
            | {"--max_steps 2000": "--held_out 1 --max_steps 1 --use_cpu --sample_steps 0"}
            | {"--per_device_train_batch_size 8": "--per_device_train_batch_size 1"},
        ),
        Left("needs the real lerobot, in its own environment; tests/data/lerobot/test_export.py runs the export"),
    ],
    "docs/robotwin.md": [
        Left("it installs; tests/envs/test_robotwin_runtime.py runs what it makes"),
        Left("names the user's own checkout"),
        Run(),
        Run(
            {"--splits easy hard": "--splits easy --tasks click_bell"}
            | {"--episodes 300 --seeds_per_episode 20": "--episodes 1 --seeds_per_episode 2"}
        ),
        Left("needs RoboTwin's recordings; tests/envs/test_robotwin_annotation.py makes some and runs it"),
        Left("needs a checkpoint for RoboTwin; tests/evaluation runs it, on a stand-in, and writes its report"),
        Left("needs RoboTwin's code; tests/envs/test_robotwin_runtime.py records its episodes"),
        Left("needs a cluster"),
        Left("needs that cluster's folders; tests/data/test_collect.py puts such together"),
        Left("hours"),
    ],
    "docs/gymnasium.md": [Left("it installs"), Run()],
    "docs/aloha.md": [
        Left("it installs"),
        Run(),
        Run(
            {"--episodes 200": "--episodes 1 --tasks transfer_cube"}
            | {"--render 10 --simulate 10": "--render 1 --simulate 0"}
        ),
        Left("hours of training; tests/training runs each of its commands, smaller"),
        Left("needs a checkpoint for the suite; tests/envs/test_aloha.py runs its rollouts"),
        Left(
            "days of training, in an environment with lerobot; plugins/lerobot_env_aim/tests runs its steps, smaller"
        ),
        Left("needs that training"),
    ],
    "docs/perturbations.md": [
        Run({"--episodes 50": "--episodes 1"}),
        Left("hours; tests/evaluation/test_perturbations.py runs it, smaller"),
    ],
    "docs/rollout.md": [
        *[Run(before=ROBOT), Run(), Run(), Run(before=ALONE), Run()],
        Run({"episodes=20": "episodes=1"}),
    ],
    "docs/stage2.md": [
        Left("the last block runs the command"),
        Left("the last block runs the commands"),
        Run(
            {"max_steps=20, gradient_accumulation_steps=8": "max_steps=1, num_generations=2, save_strategy='no', "}
            | {'"runs/quick"': '"runs/quick", per_device_train_batch_size=2', "stack_blocks_two": "click_bell"}
            | {"160": "1"}
        ),
        Run(
            {
                "git worktree add ../aim-0.1 446fa84\n": "",  # a clone may have no history
                "../aim-0.1/checkpoints": "checkpoints",
                "--tasks $TASKS --episodes 300": "--tasks click_bell --episodes 2",
                "--bf16 --compile_blocks": "--held_out 1",
            }
            | {"--max_steps 800 --per_device_train_batch_size 8": "--max_steps 1 --per_device_train_batch_size 1"}
            | {"--save_steps 50": "--save_steps 1"}
        ),
        Run({"checkpoint-150": "checkpoint-1"}),
        Run(
            {'"1 1" "0 1" "1 0"': '"1 0"', "--tasks $TASKS": "--tasks click_bell", "--max_steps 240": "--max_steps 1"}
            | {"--episodes 100": "--episodes 1 --videos 0", "--videos 6": "--videos 1"}
            | {"--per_device_train_batch_size 8": "--per_device_train_batch_size 2 --num_generations 2"}
            | {"--gradient_accumulation_steps 6 --steps_per_generation 12": "", "--num_iterations 2": ""}
            | {
                "--eval_strategy steps": "",
                "--eval_on_start": "",
                "--eval_steps 60 --eval_scenes 144": "--eval_scenes 1",
            }
        ),
    ],
    "docs/serving.md": [
        Left("it serves until it is stopped; the next block starts it in the background"),
        Run({"8000": "PORT"}, before=SERVED),
        Left("it serves until it is stopped; tests/serving/test_messages_of_others.py sends such messages"),
        Left("other people's servers; tests/serving/test_remote.py has stand-ins for them"),
        Left("a server of the reader's; tests/serving/test_remote.py has one"),
        Left("it serves until it is stopped; tests/pipeline/test_loading.py loads so"),
    ],
    "docs/training.md": [
        Left("hours of training; tests/training runs each of its commands, smaller"),
        *[Left(FULL_SIZE)] * 4,
        Run(before=LATENTS),
    ],
}
ELSEWHERE = {
    "docs/hub.md": "tests/test_hub.py runs its blocks against a Hub",
    "docs/lerobot.md": "needs lerobot; `make test-lerobot` runs its blocks",
}
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


def blocks(document: str) -> list[tuple[str, str]]:
    """Language and code of each block of Python or Bash."""
    return [block for block in BLOCK.findall((ROOT / document).read_text()) if block[0] in ("python", "bash")]


class Parsed(BaseException):
    """A command has parsed its arguments."""


def commands(code: str) -> list[list[str]]:
    """The arguments of each `aim-hf` in a script of Bash, with 1 for variables."""
    code = re.sub(r"\\\n|\s#.*", " ", re.sub(r"\$\([^)]*\)", "$", code))
    words = shlex.shlex(code, posix=True, punctuation_chars="();<>|&\n")
    words.whitespace, words.whitespace_split = " \t", True
    words, found = list(words), []
    for start, word in enumerate(words):
        if word in ("aim-hf", "aim_hf"):
            end = next((i for i in range(start, len(words)) if not words[i].strip("();<>|&\n")), len(words))
            found.append(["1" if "$" in word else word for word in words[start + 1 : end]])
        elif "aim-hf " in word:  # a script in quotes
            found += commands(word)
    return found


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CONTRIBUTING.md"])  # names new things
def test_options_exist(document, monkeypatch):
    parse = argparse.ArgumentParser.parse_known_args

    def stop(parser, *args, **kwargs):
        _, unknown = parse(parser, *args, **kwargs)
        assert not unknown, f"{parser.prog} has no {unknown}"
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    scripts = [code for language, code in blocks(document) if language == "bash"]
    for arguments in itertools.chain.from_iterable(map(commands, scripts)):
        with pytest.raises(Parsed):
            aim_hf(arguments)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_several_processes_are_launched(document):
    for options in re.findall(r"accelerate launch ([^\n`]*--num_processes \S+)", (ROOT / document).read_text()):
        assert "--multi_gpu" in options, options  # without it, and without GPUs, Accelerate silently runs one process


def test_no_document_is_forgotten():
    assert set(DOCUMENTS) - set(ELSEWHERE) == set(SCENARIOS)


def test_the_changes_and_the_plugins_are_of_this_version():
    changes = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    for file in (ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")):
        found = tomllib.loads(file.read_text())["project"]
        assert found["version"] == changes
        floors = [need.partition(">=")[2] for need in found["dependencies"] if re.match(r"aim-hf\b", need)]
        assert floors in ([], [changes])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{document} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], (
                target
            )
        if (
            file.suffix == ".py"
            and (symbol := re.fullmatch(r"`(?:\w+\.)*(\w+)`", text))
            and not text[1:-1].endswith(".py")
        ):
            assert re.search(rf"^\s*(def|class) {symbol[1]}\b", file.read_text(), re.MULTILINE), f"{text} in {target}"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that looks like the repository's, but that a block may write to."""
    for folder in FOLDERS:
        (tmp_path / folder).symlink_to(ROOT / folder)
    root, python = write_checkout(tmp_path / "robotwin")
    monkeypatch.setenv("ROBOTWIN_ROOT", str(root))
    monkeypatch.setenv("ROBOTWIN_PYTHON", str(python))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def episodes(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp("sample") / "episodes"
    shell(f"aim-hf collect --tasks click_bell --splits easy --episodes 2 --output_dir {folder}", python)
    return folder


@pytest.mark.parametrize(
    "document",
    [name for name, scenario in SCENARIOS.items() if scenario]
    + [pytest.param(name, marks=pytest.mark.skip(reason=reason)) for name, reason in ELSEWHERE.items()],
)
def test_every_block_runs(document, place, python, request):
    scenario, found = SCENARIOS[document], blocks(document)
    assert len(found) == len(scenario), "each block needs a Run, or a Left with its reason"
    if document == "docs/data.md":
        (place / "outputs").mkdir()
        (place / "outputs" / "dataset-sample").symlink_to(request.getfixturevalue("episodes"))
    if document == "docs/own_robot.md":
        (_, config), *_ = (block for block in BLOCK.findall((ROOT / document).read_text()) if block[0] == "json")
        (place / "my_robot.json").write_text(config)
    names: dict = {"__name__": "__main__", "python": python}
    port = str(free_port())
    try:
        run(document, found, scenario, names, port, python)
    finally:
        if "server" in names:
            names["server"].terminate()
            names["server"].wait(60)


def run(document, found, scenario, names, port, python) -> None:
    for (language, code), how in zip(found, scenario):
        if isinstance(how, Left):
            continue
        for text, other in how.smaller.items():
            assert text in code, f"{document} no longer says {text!r}"
            code = code.replace(text, other.replace("PORT", port))
        exec(how.before.replace("PORT", port), names)
        if language == "bash":
            shell(code, python)
        else:
            exec(compile(code, document, "exec"), names)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def shell(code: str, python: str) -> None:
    """Runs a script of Bash with the commands beside `python`, then those of this environment."""
    # Launching costs seconds a command; tests/training and tests/evaluation launch for real.
    code = LAUNCH.sub("python ", code)
    folders = [str(Path(python).parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env=os.environ | {"PATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
