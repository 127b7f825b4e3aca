"""The page: controls on the left, the episode on the right.

Gradio's queue lets some people run at once and the others wait; everyone sees their own episode. Whoever stops, or
leaves, closes their episode's iterator, which frees its simulator.
"""

import logging
import random
import tempfile
import time
from contextlib import closing
from pathlib import Path

from ..envs.base import SPLITS
from ..envs.seeds import seed_range
from ..rollout.storyboard import views, write_video
from ..utils.extras import extra
from .episode import LiveEpisode, LiveRollouts, Trouble, held_out_scene
from .view import hands, pictures, status

with extra("app"):
    import gradio as gr

_logger = logging.getLogger(__name__)

_TITLE = """# AIM: imagine, aim, act
Tell a robot what to do. It imagines what its cameras will see, marks where it wants to act, and acts on its marks."""

# What `launch` needs to know of the page. Fonts are the system's: nothing is fetched.
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


def build(rollouts: LiveRollouts, tasks: list[str], at_once: int) -> gr.Blocks:
    """The page, for `launch(**LAUNCH)`.

    Args:
        tasks: to choose from.
        at_once: episodes that run while others wait. `rollouts` needs a simulator more, which shows scenes.
    """
    seeds, sampling = seed_range("evaluation"), rollouts.pipe.sampling_config
    with gr.Blocks(title="AIM: imagine, aim, act", analytics_enabled=False, delete_cache=(600, 600)) as page:
        shown = gr.State()  # the scene that is set up, and its own words
        gr.Markdown(_TITLE, elem_id="title")
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="controls"):
                task = gr.Dropdown(tasks, value=tasks[0], label="Task", elem_id="task")
                split = gr.Radio(
                    [(name.capitalize(), name) for name in SPLITS], value=SPLITS[0], label="Scene", elem_id="split",
                    info="Hard: clutter, textures, odd light.",
                )  # fmt: skip
                with gr.Row(elem_id="seed-row"):
                    seed = gr.Number(seeds.start, label="Seed", elem_id="seed")
                    another = gr.Button("Another", size="md", min_width=80, elem_id="another")
                instruction = gr.Textbox(
                    label="Instruction", info="From the scene; change it as you like.", lines=2,
                    max_lines=3, elem_id="instruction",
                )  # fmt: skip
                with gr.Accordion("Sampling", open=False):
                    world_steps = gr.Slider(1, 20, sampling.num_inference_steps, step=1, label="Steps of the world")
                    action_steps = gr.Slider(
                        1, 20, sampling.num_action_inference_steps, step=1, label="Steps of actions"
                    )
                    early_end = gr.Slider(
                        0, 20, sampling.stop_after or 0, step=1, label="End the world after step (0: don't)"
                    )
                with gr.Row(elem_id="buttons"):
                    run = gr.Button("Run", variant="primary", min_width=80, elem_id="run")
                    stop = gr.Button("Stop", interactive=False, min_width=80, elem_id="stop")
                replay = gr.Video(label="Replay", visible=False, elem_id="replay")
            with gr.Column(elem_id="theatre"):
                line = gr.HTML(status("Setting up the scene…", "busy"), elem_id="line")
                stage = gr.HTML(pictures(), elem_id="stage")
                curves = gr.HTML(hands(), elem_id="curves")

        controls = [task, split, seed, another, instruction, world_steps, action_steps, early_end, run, stop]

        def usable(is_running: bool) -> dict:
            return {control: gr.update(interactive=is_running == (control is stop)) for control in controls}

        def show(task, split, seed, last_shown):
            try:
                scene = held_out_scene(task, split, seed)
                if last_shown is not None and last_shown[0] == scene:
                    return {line: gr.skip()}
                start = rollouts.show(scene)
            except Trouble as trouble:
                return {line: status(str(trouble), "error"), shown: None}
            return {
                line: status("Ready: press Run.", detail=f"at most {start.step_limit} steps"),
                stage: pictures(views(start.observation)),
                curves: hands(),
                instruction: start.instruction,
                replay: gr.update(visible=False),
                shown: (scene, start.instruction),
            }

        def begin():
            """What is seen at once, also by those who wait for their turn: they may stop, too."""
            return usable(True) | {line: status("Setting up the scene…", "busy"), replay: gr.update(visible=False)}

        def play(task, split, seed, words, last_shown, world_steps, action_steps, early_end):
            try:
                scene = held_out_scene(task, split, seed)
                chosen = rollouts.sampling(world_steps, action_steps, early_end or None)
                changed = last_shown is not None and words != last_shown[1]
                with closing(rollouts.run(scene, words if changed else None, chosen)) as episodes:
                    moments = 0
                    for episode in episodes:
                        board = episode.board
                        if not board.steps:
                            yield {
                                stage: pictures(views(board.start)),
                                curves: hands(),
                                instruction: board.instruction,
                                shown: (scene, episode.own_instruction),
                            }
                        yield from tell(episode, moments)
                        moments = len(board.steps)
                with tempfile.TemporaryDirectory() as folder:
                    video = Path(folder) / f"{task}-{split}-{scene.seed}.mp4"
                    write_video(video, board)
                    yield {replay: gr.update(value=video, visible=True)}
            except Trouble as trouble:
                yield {line: status(str(trouble), "error")}
            except Exception as error:
                _logger.exception("an episode failed: %s, %s, %s, %r", task, split, seed, words)
                told = (
                    f"Something went wrong on the server ({type(error).__name__}); its log tells more. Run it again."
                )
                yield {line: status(told, "error")}
            yield usable(False)

        def tell(episode: LiveEpisode, first: int):
            """The moments from the `first` on, in real time, and what comes next."""
            board = episode.board
            detail = f"at most {board.step_limit} steps"
            if episode.seconds:
                detail += f" · network {sum(episode.seconds) / len(episode.seconds):.1f} s a chunk"
            for moment in range(first, len(board.steps)):
                step, share = board.steps[moment], board.steps[moment] / board.step_limit
                if episode.done and moment == len(board.steps) - 1:
                    outcome = (f"Success in {step} steps", "success") if board.success else ("No success", "failure")
                    now = status(*outcome, detail, share)
                else:
                    now = status(f"Acting: step {step}", "busy", detail, share)
                update = {line: now, stage: pictures(board.observed[moment], board, moment)}
                yield update | ({curves: hands(board)} if moment == first else {})
                time.sleep(board.control_dt * (step - (board.steps[moment - 1] if moment else 0)))
            if not episode.done:
                share = board.steps[-1] / board.step_limit if board.steps else 0
                yield {line: status("Imagining what comes next…", "busy", detail, share)}

        def stopped():
            return usable(False) | {line: status("Stopped. Run starts the scene again.")}

        scene_parts = [task, split, seed, shown]
        set_up = [line, stage, curves, instruction, replay, shown]
        another.click(lambda: random.choice(seeds), outputs=seed, show_progress="hidden").then(
            show, scene_parts, set_up, show_progress="hidden", concurrency_id="scenes", concurrency_limit=1
        )
        gr.on(
            [page.load, task.input, split.input, seed.submit, seed.blur], show, scene_parts, set_up,
            show_progress="hidden", trigger_mode="always_last", concurrency_id="scenes",
        )  # fmt: skip
        running = run.click(begin, outputs=[line, replay, *controls], queue=False, show_progress="hidden").then(
            play,
            [task, split, seed, instruction, shown, world_steps, action_steps, early_end],
            [line, stage, curves, replay, shown, *controls],
            show_progress_on=line,
            concurrency_limit=at_once,
        )
        # On a phone the pictures are above the controls.
        run.click(None, js="() => document.querySelector('#title').scrollIntoView({behavior: 'smooth'})")
        # First the end of the episode, then its news, on the same stream: no late picture comes after them.
        stop.click(None, cancels=running).then(
            stopped,
            outputs=[line, *controls],
            show_progress="hidden",
        )
    return page
