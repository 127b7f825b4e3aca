"""The folder of a Space is complete: its app starts from there, and publishing recognizes it."""

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from make_space import make_space

from aim_hf.hub import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space") / "space"
    make_space(folder)
    return folder


def test_versions_are_those_that_the_tests_passed_with(space):
    required = (space / "requirements.txt").read_text().splitlines()
    pinned = (ROOT / "constraints.txt").read_text().lower().splitlines()
    assert {line.lower().replace("-", "_") for line in required} <= {line.replace("-", "_") for line in pinned}
    assert any(line.startswith("torch==") for line in required)
    assert (
        f"sdk_version: {re.search('^gradio==(.*)$', chr(10).join(pinned), re.M)[1]}\n"
        in (space / "README.md").read_text()
    )


def test_publishing_knows_a_space(space):
    publication = prepare(space)
    assert (publication.repo_type, publication.sdk) == ("space", "gradio")
    assert {
        "app.py",
        "packages.txt",
        "aim_hf/app/page.css",
        "aim_hf/checkpoints/aim-tiny/model_index.json",
    } <= set(publication.files)
    assert not any("pycache" in path for path in publication.files)


def test_the_app_starts_in_the_space(space):
    # Isolated from the checkout's own package, as on the Hub: what isn't in the folder isn't found.
    code = "import sys, runpy; sys.path[:0] = ['.']; import aim_hf; print(aim_hf.__file__); sys.argv = ['app.py'];"
    code += "runpy.run_path('app.py', run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, cwd=space, env=environment, stdout=subprocess.PIPE, text=True) as app:
        try:
            assert Path(app.stdout.readline().strip()).resolve().is_relative_to(space.resolve())
            address = next(found[0] for line in app.stdout if (found := re.findall(r"http://127\.0\.0\.1:\d+", line)))
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert b"AIM: imagine, aim, act" in answer.read()
        finally:
            app.terminate()
