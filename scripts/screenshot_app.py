"""Takes the picture of the app in docs/installation.md, in the middle of an episode:

    python scripts/screenshot_app.py docs/images/app.png [--task stack_blocks_two] [--width 1280] [--height 800]

Needs Chromium (Debian: chromium).
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aim_hf.commands import PathParser

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@contextmanager
def browser(width: int = 1280, height: int = 800) -> Iterator:
    """A playwright browser context of Chromium, headless, with an empty profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=_FLAGS.split(),
            viewport={"width": width, "height": height},
            timeout=300_000,
        )
        context.set_default_timeout(300_000)
        try:
            yield context
        finally:
            context.close()


@contextmanager
def served(rollouts, tasks: list[str], at_once: int = 1) -> Iterator[str]:
    """The address of the app, served by this process."""
    from aim_hf.app.page import LAUNCH, build

    page = build(rollouts, tasks, at_once)
    try:
        yield page.launch(prevent_thread_lock=True, quiet=True, **LAUNCH)[1]
    finally:
        page.close(verbose=False)


def main() -> None:
    # Imported here: the environments' worker processes import this file too, and need none of it.
    from aim_hf.app.episode import LiveRollouts, Simulators
    from aim_hf.envs.names import TABLETOP
    from aim_hf.pipeline.pipeline_aim import AIMPipeline

    parser = PathParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--task", choices=TABLETOP, default="stack_blocks_two")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    args = parser.parse_args()

    rollouts = LiveRollouts(AIMPipeline.from_pretrained("checkpoints/aim-tiny"), Simulators(limit=2))
    tasks = [args.task, *(task for task in TABLETOP if task != args.task)]
    with served(rollouts, tasks) as address, browser(args.width, args.height) as context:
        page = context.new_page()
        page.goto(address)
        page.get_by_text("Ready: press Run.").wait_for()
        page.click("#run")
        page.get_by_text(re.compile(r"Acting: step 1[0-9]")).wait_for()
        page.screenshot(path=args.output)
    rollouts.simulators.close()


if __name__ == "__main__":
    main()
