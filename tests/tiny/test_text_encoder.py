"""The tiny tokenizer and text encoder, trained on a handful of instructions."""

import json
import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForTextEncoding, AutoTokenizer

from aim_hf import AIMProcessor, t_pose_canvas
from aim_hf.commands.train_text_encoder import canvas_size, main
from aim_hf.commands.train_vae import main as train_vae
from aim_hf.tiny.text_encoder import spell, tiny_text_encoder, train_text_encoder, train_tokenizer, vary

from ..data.fixtures_episodes import make_episode, write_shard

COLORS = ("red", "green", "blue", "yellow")
INSTRUCTIONS = [
    *(f"Put the {a} block on the {b} one." for a in COLORS for b in COLORS if a != b),
    *(f"Place the {a} cube to the {side} of the disc." for a in COLORS for side in ("left", "right")),
    "Press the top of the bell.",
    "Lift the pot with both hands.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(INSTRUCTIONS)


@pytest.fixture(scope="module")
def trained(tokenizer):
    torch.manual_seed(0)
    encoder = tiny_text_encoder(len(tokenizer), width=32)
    accuracy = train_text_encoder(encoder, tokenizer, INSTRUCTIONS, steps=400, batch_size=32, learning_rate=5e-3)
    return encoder, accuracy


def embed(encoder, tokenizer, texts):
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        features = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    mask = tokens.attention_mask[..., None]
    return (features * mask).sum(dim=1) / mask.sum(dim=1)


def test_tokens(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    ids = tokenizer("Put the red block on the blue one.")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id and len(ids) <= 10
    assert tokenizer("PUT THE RED BLOCK ON THE BLUE ONE.")["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" .", ".") == "put the red block on the blue one."


def test_unseen_words_are_spelled_not_unknown(tokenizer):
    ids = tokenizer("Fetch 2 zebra-mugs, quick & tidy!")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert ids != tokenizer("Fetch 3 zebra-mugs, quick & tidy!")["input_ids"]


def test_training_restores_masked_tokens(trained):
    assert trained[1] > 0.35  # the most frequent token alone is 15 % of them


def test_words_that_decide_stay_apart_and_wording_does_not(trained, tokenizer):
    left, right, reworded = embed(
        trained[0],
        tokenizer,
        [
            "Place the red cube to the left of the disc.",
            "Place the red cube to the right of the disc.",
            "place the red cube to the left of the disc",
        ],
    )
    assert (left - right).norm() > 0.05 * left.norm()
    bell = embed(trained[0], tokenizer, ["Press the top of the bell."])[0]
    assert (left - reworded).norm() < (left - bell).norm()


def test_saved_and_loaded_by_the_auto_classes(trained, tokenizer, tmp_path):
    trained[0].save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder = AutoModelForTextEncoding.from_pretrained(tmp_path / "encoder").eval()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    text = ["Put the red block on the blue one.", "Wave."]
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in trained[0].state_dict().items())
    torch.testing.assert_close(embed(encoder, loaded, text), embed(trained[0], tokenizer, text))


def test_variation_keeps_an_instruction(tokenizer):
    rng = random.Random(0)
    varied = {vary("Press the bell.", rng) for _ in range(50)}
    assert len(varied) > 5 and all(text.strip(" .!") for text in varied)


def test_some_words_are_spelled_in_training(tokenizer):
    text = "Lift the pot with both hands."
    ids = tokenizer(text)["input_ids"]
    spellings = [spell(text, tokenizer, random.Random(seed)) for seed in range(40)]
    assert ids in spellings and any(len(spelling) > len(ids) for spelling in spellings)
    decoded = {tokenizer.decode(spelling, skip_special_tokens=True) for spelling in spellings}
    assert decoded == {tokenizer.decode(ids, skip_special_tokens=True)}


def test_the_seed_decides(tokenizer):
    def weights(seed):
        torch.manual_seed(0)
        encoder = tiny_text_encoder(len(tokenizer), width=16)
        train_text_encoder(encoder, tokenizer, INSTRUCTIONS, steps=3, batch_size=8, seed=seed)
        return encoder.shared.weight

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("steps", [1, 20, 21])
def test_a_few_steps_change_the_weights(tokenizer, steps):
    encoder = tiny_text_encoder(len(tokenizer), width=16)
    before = encoder.shared.weight.detach().clone()
    train_text_encoder(encoder, tokenizer, INSTRUCTIONS, steps=steps, batch_size=4)
    assert not torch.equal(encoder.shared.weight, before) and encoder.shared.weight.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; expected a whole number, at least 1"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, at least 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; expected a finite number, at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a finite number, at least 0"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_named(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        train_text_encoder(tiny_text_encoder(len(tokenizer)), tokenizer, ["Wave."], **options)


def test_no_instructions():
    with pytest.raises(ValueError, match="no instructions"):
        train_tokenizer([])


@pytest.mark.parametrize(
    ("head", "wrist", "canvas"),
    [((64, 96), (32, 48), (96, 96)), ((64, 96), (64, 96), (96, 96)), ((240, 320), (240, 320), (360, 320))],
)
def test_the_default_canvas_shows_the_head_camera_as_it_is(head, wrist, canvas):
    assert canvas_size({"head_camera": head, "left_camera": wrist}) == canvas
    slots = t_pose_canvas(canvas, head, wrist)
    assert tuple(slots["head_camera"]["slot"][2:]) == head
    height, width = slots["left_camera"]["slot"][2:]
    assert height * wrist[1] == width * wrist[0], "a wrist picture keeps its proportions"


@pytest.mark.parametrize("canvas", ["360 320", "96 72"])
def test_a_canvas_that_the_codec_cannot_divide_is_refused(tmp_path, canvas):
    """By the command that makes the canvas, and by the one that makes the codec, before it decodes anything."""
    write_shard(tmp_path / "episodes", [make_episode(0)])
    base, (height, width) = tmp_path / "base", canvas.split()
    other = "--canvas 384 320" if canvas == "360 320" else "--canvas 96 96"
    told = f"the canvas is {height} x {width} .*; expected multiples of 16, .* such as {other}.$"
    where = ["--dataset", str(tmp_path / "episodes"), "--policy", str(base)]
    with pytest.raises(ValueError, match=told):
        main([*where, "--steps", "1", "--canvas", height, width])
    assert not base.exists()
    size = int(height), int(width)
    processor = AIMProcessor(train_tokenizer(INSTRUCTIONS), size, t_pose_canvas(size, size, size))
    processor.save_pretrained(base / "processor")
    with pytest.raises(ValueError, match=told):
        train_vae([*where, "--output_dir", str(tmp_path / "vae")])
    assert not (tmp_path / "vae").exists() and not (base / "vae").exists()


def test_an_instruction_that_is_too_long_is_refused_before_anything_is_trained(tmp_path):
    write_shard(tmp_path / "episodes", [replace(make_episode(0), instruction="Wave " * 9), make_episode(1)])
    base = tmp_path / "base"
    with pytest.raises(ValueError, match="^instructions have at most 8 tokens .*'Wave Wave.* Shorten it.$"):
        main(["--dataset", str(tmp_path / "episodes"), "--policy", str(base), "--max_text_length", "8"])
    assert not base.exists()


def test_the_command_records_what_it_was_made_from(tmp_path):
    """The same command makes the same again; another one is refused by name, and leaves everything as it was."""
    write_shard(tmp_path / "episodes", [make_episode(seed) for seed in (0, 1)])
    base = tmp_path / "base"
    options = {"dataset": tmp_path / "episodes", "policy": base, "steps": 2, "canvas": "96 96"}

    def run(**changes):
        given = (options | changes).items()
        main([part for name, value in given for part in (f"--{name}", *str(value).split())])

    def contents():
        return {path.relative_to(base): path.read_bytes() for path in base.rglob("*") if path.is_file()}

    run()
    made = contents()
    record = json.loads((base / "text_encoder.made_from.json").read_text())
    assert (record["steps"], record["canvas_size"], record["max_text_length"]) == (2, [96, 96], 64)
    run()
    assert contents() == made
    other = tmp_path / "others"
    write_shard(other, [replace(make_episode(0), instruction="Wave.")])
    for changes, told in (
        ({"steps": 3}, "steps 2 there, 3 now"),
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"canvas": "192 96"}, "canvas_size"),
        ({"dataset": other}, "instructions"),
    ):
        with pytest.raises(FileExistsError, match=f"{base} was made from something else: {told}.*Give the same sett"):
            run(**changes)
    assert contents() == made
    (base / "text_encoder.made_from.json").unlink()
    for part in ("text_encoder", "processor"):
        with pytest.raises(FileExistsError, match=f"{part} exists, but not .*text_encoder.made_from.json"):
            run()
        (base / part).rename(tmp_path / part)
