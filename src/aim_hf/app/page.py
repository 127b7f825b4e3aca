"""The web page of `aim-hf app`: controls on the left, the episode on the right.

Gradio's queue runs the episodes of some visitors at once while others wait; each visitor sees their own episode.
Stopping or leaving the page closes the iterator of the episode, which frees its simulator.
"""

import logging
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ..envs.base import SPLITS
from ..envs.seeds import seed_range
from ..rollout.storyboard import views, write_video
from ..utils.extras import extra
from .episode import HeldOutScene, LiveEpisode, LiveRollouts, Trouble, held_out_scene
from .view import hands, pictures, status

with extra("app"):
    import gradio as gr

_logger = logging.getLogger(__name__)

_TITLE = """# AIM: imagine, aim, act
Tell a robot what to do. It imagines what its cameras will see, marks where it wants to act, and acts on its marks."""

_STEPS = 20  # of denoising, that can be chosen at least

# Arguments of `launch`. Fonts are the system's, so that nothing is downloaded.
LAUNCH = {
    "css_paths": Path(__file__).with_name("page.css"),
    "theme": gr.themes.Base(
        primary_hue="orange", neutral_hue="zinc", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    ).set(
        button_primary_background_fill="#c2410c",
        button_primary_background_fill_hover="#9a3412",
        button_primary_text_color="#ffffff",
        slider_color="#c2410c",
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
    ),
    "footer_links": [],
    "ssr_mode": False,
    "share": False,
}


Shown = tuple[HeldOutScene | None, str]  # the scene that is set up, and the text box's instruction of a scene
Updates = dict[Any, Any]  # component -> its new value or update


def build(rollouts: LiveRollouts, tasks: list[str], at_once: int) -> gr.Blocks:
    """The page, for `launch(**LAUNCH)`.

    Args:
        tasks: tasks to choose from.
        at_once: episodes that run at once. `rollouts` needs one simulator more, to show scenes.
    """
    with gr.Blocks(title="AIM: imagine, aim, act", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        _Page(rollouts, tasks).connect(blocks, at_once)
    return blocks


class _Page:
    """The components of the page and the handlers of their events. Made within a `gr.Blocks`."""

    def __init__(self, rollouts: LiveRollouts, tasks: list[str]) -> None:
        self.rollouts = rollouts
        self.shown = gr.State()  # `Shown`
        gr.Markdown(_TITLE, elem_id="title")
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="controls"):
                self._add_controls(tasks)
            with gr.Column(elem_id="theatre"):
                self.line = gr.HTML(status("Setting up the scene…", "busy"), elem_id="line")
                self.stage = gr.HTML(pictures(), elem_id="stage")
                self.curves = gr.HTML(hands(), elem_id="curves")
        self.sampling = [self.world_steps, self.action_steps, self.early_end]
        self.controls = [
            self.task, self.split, self.seed, self.another, self.instruction, *self.sampling, self.run, self.stop,
        ]  # fmt: skip

    def _add_controls(self, tasks: list[str]) -> None:
        seeds, sampling = seed_range("evaluation"), self.rollouts.pipe.sampling_config
        self.task = gr.Dropdown(tasks, value=tasks[0], label="Task", elem_id="task")
        self.split = gr.Radio(
            [(name.capitalize(), name) for name in SPLITS], value=SPLITS[0], label="Scene", elem_id="split",
            info="Hard: clutter, textures, odd light.",
        )  # fmt: skip
        with gr.Row(elem_id="seed-row"):
            self.seed = gr.Number(seeds.start, label="Seed", elem_id="seed")
            self.another = gr.Button("Another", size="md", min_width=80, elem_id="another")
        self.instruction = gr.Textbox(
            label="Instruction", info="From the scene; change it as you like.", lines=2,
            max_lines=3, elem_id="instruction",
        )  # fmt: skip
        with gr.Accordion("Sampling", open=False):
            world, action = sampling.num_inference_steps, sampling.num_action_inference_steps
            most = max(_STEPS, world)
            self.world_steps = gr.Slider(1, most, world, step=1, label="Steps of the world")
            self.action_steps = gr.Slider(1, max(_STEPS, action), action, step=1, label="Steps of actions")
            self.early_end = gr.Slider(
                0, most, sampling.stop_after or 0, step=1, label="End the world after step (0: don't)"
            )
        with gr.Row(elem_id="buttons"):
            self.run = gr.Button("Run", variant="primary", min_width=80, elem_id="run")
            self.stop = gr.Button("Stop", interactive=False, min_width=80, elem_id="stop")
        self.replay = gr.Video(label="Replay", visible=False, elem_id="replay")

    def connect(self, blocks: gr.Blocks, at_once: int) -> None:
        """Connects the events of the components to the handlers."""
        seeds = seed_range("evaluation")
        scene_parts = [self.task, self.split, self.seed, self.shown]
        set_up = [self.line, self.stage, self.curves, self.instruction, self.replay, self.shown]
        self.another.click(lambda: random.choice(seeds), outputs=self.seed, show_progress="hidden").then(
            self.show, scene_parts, set_up, show_progress="hidden", concurrency_id="scenes", concurrency_limit=1
        )
        gr.on(
            [blocks.load, self.task.input, self.split.input, self.seed.submit, self.seed.blur],
            self.show, scene_parts, set_up,
            show_progress="hidden", trigger_mode="always_last", concurrency_id="scenes",
        )  # fmt: skip
        running = self.run.click(
            self.begin, outputs=[self.line, self.replay, *self.controls], queue=False, show_progress="hidden"
        ).then(
            self.play,
            [self.task, self.split, self.seed, self.instruction, self.shown, *self.sampling],
            [self.line, self.stage, self.curves, self.replay, self.shown, *self.controls],
            show_progress_on=self.line,
            concurrency_limit=at_once,
        )
        # On a phone the pictures are above the controls.
        self.run.click(None, js="() => document.querySelector('#title').scrollIntoView({behavior: 'smooth'})")
        # `stopped` runs after the episode is cancelled, so that no later picture overwrites its updates.
        self.stop.click(None, cancels=running).then(
            self.stopped,
            outputs=[self.line, *self.controls],
            show_progress="hidden",
        )

    # Handlers

    def show(self, task: str, split: str, seed: float | None, last_shown: Shown | None) -> Updates:
        """Sets up a scene, unless it is the one that was set up last."""
        try:
            scene = held_out_scene(task, split, seed)
            if last_shown is not None and last_shown[0] == scene:
                return {self.line: gr.skip()}
            start = self.rollouts.show(scene)
        except Trouble as trouble:
            own = "" if last_shown is None else last_shown[1]  # other words are the visitor's
            return {self.line: status(str(trouble), "error"), self.shown: (None, own)}
        return {
            self.line: status("Ready: press Run.", detail=f"at most {start.step_limit} steps"),
            self.stage: pictures(views(start.observation)),
            self.curves: hands(),
            self.instruction: start.instruction,
            self.replay: gr.update(visible=False),
            self.shown: (scene, start.instruction),
        }

    def begin(self) -> Updates:
        """Updates that are shown immediately, even to visitors who wait in the queue: they can stop, too."""
        return self._usable(True) | {
            self.line: status("Setting up the scene…", "busy"),
            self.replay: gr.update(visible=False),
        }

    def play(
        self,
        task: str,
        split: str,
        seed: float | None,
        words: str,
        last_shown: Shown | None,
        world_steps: int,
        action_steps: int,
        early_end: int,
    ) -> Iterator[Updates]:
        """Runs an episode and shows it, then its video. `words`: the instruction in the text box."""
        try:
            scene = held_out_scene(task, split, seed)
            sampling = self.rollouts.sampling(world_steps, action_steps, early_end or None)
            changed = last_shown is not None and words != last_shown[1]
            with closing(self.rollouts.run(scene, words if changed else None, sampling)) as episodes:
                moments = 0
                for episode in episodes:
                    board = episode.board
                    if not board.steps:
                        yield {
                            self.stage: pictures(views(board.start)),
                            self.curves: hands(),
                            self.instruction: board.instruction,
                            self.shown: (scene, episode.own_instruction),
                        }
                    yield from self._moments(episode, moments)
                    moments = len(board.steps)
            with tempfile.TemporaryDirectory() as folder:
                video = Path(folder) / f"{task}-{split}-{scene.seed}.mp4"
                write_video(video, board)
                yield {self.replay: gr.update(value=video, visible=True)}
        except Trouble as trouble:
            yield {self.line: status(str(trouble), "error")}
        except Exception as error:
            _logger.exception("an episode failed: %s, %s, %s, %r", task, split, seed, words)
            message = f"Something went wrong on the server ({type(error).__name__}); its log tells more. Run it again."
            yield {self.line: status(message, "error")}
        yield self._usable(False)

    def stopped(self) -> Updates:
        return self._usable(False) | {self.line: status("Stopped. Run starts the scene again.")}

    def _usable(self, is_running: bool) -> Updates:
        """Enables the stop button alone while an episode runs, and all other controls otherwise."""
        return {control: gr.update(interactive=is_running == (control is self.stop)) for control in self.controls}

    def _moments(self, episode: LiveEpisode, first: int) -> Iterator[Updates]:
        """Shows the moments from index `first` on in real time, then the status while the next chunk is computed."""
        board = episode.board
        detail = f"at most {board.step_limit} steps"
        if episode.seconds:
            detail += f" · network {sum(episode.seconds) / len(episode.seconds):.1f} s a chunk"
        for moment in range(first, len(board.steps)):
            step, share = board.steps[moment], board.steps[moment] / board.step_limit
            if episode.done and moment == len(board.steps) - 1:
                outcome = (f"Success in {step} steps", "success") if board.success else ("No success", "failure")
                line = status(*outcome, detail, share)
            else:
                line = status(f"Acting: step {step}", "busy", detail, share)
            update = {self.line: line, self.stage: pictures(board.observed[moment], board, moment)}
            yield update | ({self.curves: hands(board)} if moment == first else {})
            time.sleep(board.control_dt * (step - (board.steps[moment - 1] if moment else 0)))
        if not episode.done:
            share = board.steps[-1] / board.step_limit if board.steps else 0
            yield {self.line: status("Imagining what comes next…", "busy", detail, share)}
