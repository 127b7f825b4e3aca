"""The page: what its handlers answer, and what a person sees in a browser."""

import re
import sys

import gradio as gr
import pytest
from screenshot_app import CHROMIUM, browser, served

from aim_hf.app.page import LAUNCH, build
from aim_hf.envs.seeds import seed_range
from aim_hf.pipeline.sampling_config import SamplingConfig

SEED = seed_range("evaluation").start
TASKS = ["click_bell", "place_a2b_left"]
SLOW = 300_000  # ms: a busy machine is no failure


# Without a browser


@pytest.fixture(scope="module")
def handlers(rollouts):
    """Name -> function; its updates are told by the components' names."""
    page = build(rollouts, TASKS, at_once=1)

    def named(update):
        return {
            component.elem_id or component.label or component.get_block_name(): v for component, v in update.items()
        }

    functions = {function.name: function.fn for function in page.fns.values()}
    return {
        "show": lambda *given: named(functions["show"](*given)),
        "play": lambda *given: [named(update) for update in functions["play"](*given)],
    }


def test_a_scene_is_shown_with_its_own_words_once(handlers):
    update = handlers["show"]("click_bell", "easy", SEED, None)
    assert "Ready" in update["line"] and update["instruction"] and update["stage"].count("<img") == 1
    again = handlers["show"]("click_bell", "easy", SEED, update["state"])
    assert again["line"]["__type__"] == "update" and "stage" not in again


def test_words_count_where_no_scene_could_be_set_up(handlers):
    """The scene's own words silently replaced them."""
    shown = handlers["show"]("click_bell", "easy", 7, None)["state"]
    updates = handlers["play"]("click_bell", "easy", SEED, " ", shown, 5, 10, 0)
    assert shown == (None, "") and "The instruction is empty." in updates[0]["line"]
    assert handlers["show"]("click_bell", "easy", 7, (None, "Click."))["state"] == (None, "Click.")


def test_an_episode_is_played_moment_by_moment_and_filmed(handlers, rollouts):
    updates = handlers["play"]("click_bell", "easy", SEED, "", None, 5, 10, 0)
    stages = [update["stage"] for update in updates if "stage" in update]
    lines = [update["line"] for update in updates if "line" in update]
    assert stages[0].count("<img") == 1 and all(stage.count("<img") == 3 for stage in stages[1:])
    assert len(set(stages)) == len(stages) > 5
    assert re.search(r"Success in \d+ steps", lines[-1]) and "Acting: step 2<" in "".join(lines)
    assert [update["curves"].count("<img") for update in updates if "curves" in update][:2] == [0, 2]
    assert updates[-1]["run"]["interactive"] is True and updates[-1]["stop"]["interactive"] is False
    films = [update["replay"]["value"] for update in updates if update.get("replay", {}).get("value")]
    assert [film.name for film in films] == [f"click_bell-easy-{SEED}.mp4"]
    assert not films[0].exists()  # the page has its copy


@pytest.mark.parametrize(
    "change, told",
    [
        ({"seed": 7}, "The seed is 7."),
        ({"words": " "}, "The instruction is empty."),
        ({"early_end": 6}, "The early end comes after step 6"),
        ({"world_steps": 4.5}, "num_inference_steps is 4.5; expected a whole number"),
        ({"task": "juggle"}, "The simulator can&#x27;t go on"),
    ],
)
def test_errors_are_told_in_words_and_the_controls_come_back(handlers, change, told):
    given = {"task": "click_bell", "split": "easy", "seed": SEED, "words": "Click it.", "shown": (None, "Click.")}
    given |= {"world_steps": 5, "action_steps": 10, "early_end": 0} | change
    updates = handlers["play"](*given.values())
    line = updates[-2]["line"]
    assert told in line and 'role="alert"' in line and "Traceback" not in line
    assert updates[-1]["run"]["interactive"] is True


def test_the_steps_that_a_policy_was_saved_with_can_be_chosen(rollouts, monkeypatch):
    saved = SamplingConfig(num_inference_steps=50, num_action_inference_steps=30, stop_after=40)
    monkeypatch.setattr(type(rollouts.pipe), "sampling_config", saved)
    sliders = [block for block in build(rollouts, TASKS, at_once=1).blocks.values() if isinstance(block, gr.Slider)]
    assert [slider.preprocess(slider.value) for slider in sliders] == [50, 30, 40]


def test_what_nobody_foresaw_is_logged_and_told_without_a_traceback(handlers, caplog):
    updates = handlers["play"]("click_bell", "easy", SEED, "Click.", None, "many", 10, 3)
    assert "Something went wrong on the server (TypeError)" in updates[-2]["line"]
    assert "Traceback" in caplog.text and updates[-1]["run"]["interactive"] is True


def test_starting_asks_nobody_outside(rollouts):
    asked = []

    def note(event, arguments):
        if recording and event == "socket.getaddrinfo":
            asked.append(arguments[0])

    recording = True
    sys.addaudithook(note)
    page = build(rollouts, TASKS, at_once=1)
    try:
        page.launch(prevent_thread_lock=True, quiet=True, **LAUNCH)
    finally:
        recording = False
        page.close(verbose=False)
    assert set(asked) <= {"127.0.0.1", "localhost", "0.0.0.0", None}


# In a browser


@pytest.fixture(scope="module")
def context():
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: install Chromium (Debian: apt-get install chromium)")
    with browser() as context:
        yield context


@pytest.fixture(scope="module")
def address(rollouts):
    with served(rollouts, TASKS) as address:
        yield address


@pytest.fixture
def page(context, address):
    page = context.new_page()
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address)
    page.get_by_text("Ready: press Run.").wait_for(timeout=SLOW)
    yield page
    page.close()
    outside = [url for url in requested if not url.startswith((address, "data:", "blob:"))]
    assert not outside


def picture(page, panel):
    return page.get_attribute(f".panel.{panel} img", "src")


def test_a_person_runs_an_episode(page):
    assert page.input_value("#instruction textarea").strip()
    before = picture(page, "observed")
    page.click("#run")
    page.get_by_text(re.compile(r"Acting: step \d")).wait_for(timeout=SLOW)
    assert page.is_disabled("#run") and page.is_enabled("#stop")
    assert picture(page, "imagined") != picture(page, "value")
    page.get_by_text(re.compile(r"Success in \d+ steps")).wait_for(timeout=SLOW)
    assert picture(page, "observed") != before
    page.wait_for_selector("#replay video", timeout=SLOW)
    page.wait_for_selector("#run:not([disabled])", timeout=SLOW)


def test_a_person_reads_what_is_wrong_and_mends_it(page):
    page.fill("#seed input", "7")
    page.press("#seed input", "Tab")
    page.get_by_text("The seed is 7. Choose a whole number").wait_for(timeout=SLOW)
    page.fill("#seed input", str(SEED + 1))
    page.press("#seed input", "Tab")
    page.get_by_text("Ready: press Run.").wait_for(timeout=SLOW)
    page.fill("#instruction textarea", "")
    page.click("#run")
    page.get_by_text("The instruction is empty.").wait_for(timeout=SLOW)
    page.wait_for_selector("#run:not([disabled])", timeout=SLOW)


def test_a_person_changes_the_words_and_stops(page):
    page.fill("#instruction textarea", "Press the bell, please.")
    page.click("#run")
    page.get_by_text("Imagining what comes next").wait_for(timeout=SLOW)
    page.click("#stop")
    page.get_by_text("Stopped.").wait_for(timeout=SLOW)
    assert page.input_value("#instruction textarea") == "Press the bell, please."
    assert page.is_enabled("#run") and page.is_disabled("#stop")
    page.wait_for_timeout(1500)  # long enough for an update that comes too late
    assert "Stopped." in page.inner_text("#line") and "Error" not in page.inner_text("#line")


def test_who_waits_has_their_turn_when_the_other_leaves(page, context, address, rollouts):
    other = context.new_page()
    other.goto(address)
    other.get_by_text("Ready: press Run.").wait_for(timeout=SLOW)
    other.click("#run")
    other.get_by_text("Imagining what comes next").wait_for(timeout=SLOW)
    with rollouts._network:  # so that the other's episode can't end meanwhile, however slow the browser is
        page.click("#run")
        page.get_by_text("queue: 1/1").wait_for(timeout=SLOW)
        page.click("#stop")  # tired of waiting
        page.get_by_text("Stopped.").wait_for(timeout=SLOW)
        page.click("#run")
        page.get_by_text("queue: 1/1").wait_for(timeout=SLOW)
        other.close()
    page.get_by_text(re.compile(r"Acting: step \d")).wait_for(timeout=SLOW)
    page.click("#stop")
    page.get_by_text("Stopped.").wait_for(timeout=SLOW)


def test_a_phone_shows_the_pictures_first_and_scrolls_one_way(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tops = [page.locator(part).bounding_box()["y"] for part in ("#line", "#stage", "#controls")]
    assert tops == sorted(tops)
    assert page.locator("#run").bounding_box()["y"] < 844
