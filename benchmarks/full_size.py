"""The full size once, on a CPU: a released layout of random weights, through all that a real one goes through.

    python benchmarks/full_size.py --folder FOLDER [--preset wan2.2-ti2v-5b] --output_file FILE.json

Needs 24 GB of memory and 27 GB of disk in FOLDER at the 5B preset. Each stage is a process of its own, so that its
time, its peak of memory and the bytes that it reads are its own; it deletes what no later stage needs. A run that was
stopped goes on with its next stage; FOLDER is of one preset and commit.

1. `text encoder`: weights of UMT5-XXL and a tokenizer are written, shard by shard; the encoder is loaded, encodes a
   prompt and is let go. One of the same width and one layer takes its place, since both don't fit into memory.
2. `weights`: transformer and VAE are written, in bfloat16, shard by shard.
3. `from_wan`: `AIMPipeline.from_wan`, then `save_pretrained`.
4. `chunk`: Wan's folder is deleted and the saved pipeline loaded. It samples a chunk in bfloat16 from the prompt of
   stage 1, takes in the real frames of that chunk, and samples the next one.

`--rehearsal` runs the same at small width.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import finish
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from huggingface_hub import split_torch_state_dict_into_shards
from latency import make_text_encoder, make_vae
from memory import observations, tokenizer
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from aim_hf import AIMConfig, AIMPipeline
from aim_hf.commands import PathParser
from aim_hf.model.conversion import SHARED_FIELDS
from aim_hf.model.presets import PRESETS
from aim_hf.model.processing_aim import robotwin_processor
from aim_hf.pipeline.loading import load_text_encoder
from aim_hf.utils.files import claim, read_json, write_json
from aim_hf.utils.provenance import source_commit

GB, SHARD = 1e9, 2_000_000_000
DISK_GB = 27
SMALL = dict(num_attention_heads=2, attention_head_dim=24, ffn_dim=64, num_layers=2, text_dim=64, freq_dim=32)
PROMPT = "put the red block on the blue one"


def main() -> None:
    parser = PathParser(description=__doc__)
    released = sorted(name for name in PRESETS if name.startswith("wan"))
    parser.add_argument("--preset", default="wan2.2-ti2v-5b", choices=released)
    parser.add_argument("--folder", type=Path, required=True, help="for the weights; on a disk with room for them")
    parser.add_argument("--rehearsal", action="store_true", help="the same at small width")
    parser.add_argument("--stage", choices=STAGES, help="run this one alone, in this process")
    parser.add_argument("--output_file", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    if args.stage:
        return measure(args)
    made_from = {"preset": args.preset, "rehearsal": args.rehearsal, "commit": source_commit()}
    try:
        claim(args.folder, made_from, "*.json")
    except FileExistsError as error:
        parser.error(str(error))
    taken = sum(file.stat().st_size for file in args.folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(args.folder).free + taken
    if free < DISK_GB * GB and not args.rehearsal:
        parser.error(f"{args.folder} has room for {free / GB:.1f} GB; expected {DISK_GB}")
    stages = {}
    for name in STAGES:
        result = args.folder / f"{name}.json"
        if not result.is_file():
            subprocess.run([sys.executable, *sys.argv, "--stage", name], check=True)
        stages[name] = read_json(result, "delete it and run again")
    args.folder, args.device = str(args.folder), "cpu"
    finish({"stages": stages, "peak_memory_gb": max(stage["peak_memory_gb"] for stage in stages.values())}, args)


def measure(args: argparse.Namespace) -> None:
    """Runs a stage, and writes FOLDER/STAGE.json once it is done."""
    start = time.perf_counter()
    numbers = STAGES[args.stage](args)
    numbers |= {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_gb": status("/proc/self/status", "VmHWM") * 1024 / GB,
        "read_from_disk_gb": status("/proc/self/io", "read_bytes") / GB,
        "disk_gb": sum(file.stat().st_size for file in args.folder.rglob("*") if file.is_file()) / GB,
    }
    write_json(args.folder / f"{args.stage}.json", numbers, indent=2)


def status(file: str, field: str) -> int:
    line = next(line for line in Path(file).read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


def text_encoder(args: argparse.Namespace) -> dict:
    folder = args.folder / "wan"
    tokenizer().save_pretrained(folder / "tokenizer")
    args.device = "meta"
    model = make_text_encoder(args)
    if args.rehearsal:
        model = UMT5EncoderModel(UMT5Config(d_model=64, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=512))
    model.config.save_pretrained(folder / "text_encoder")
    written = write_weights(model, folder / "text_encoder", "model", skip=("encoder.embed_tokens.weight",))
    config, parameters = model.config, sum(parameter.numel() for parameter in model.parameters())
    loaded = load_text_encoder(folder)
    tokens = robotwin_processor(tokenizer()).tokenize(PROMPT)
    with torch.no_grad():
        features = loaded(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    features = features.masked_fill(tokens.attention_mask[..., None] == 0, 0)
    save_file({"features": features.contiguous()}, args.folder / "prompt.safetensors")
    del loaded
    shutil.rmtree(folder / "text_encoder")
    small = {"d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 8}
    UMT5EncoderModel(UMT5Config(**config.to_dict() | small)).to(torch.bfloat16).save_pretrained(
        folder / "text_encoder"
    )
    return {"parameters": parameters, "written_gb": written, "dtype": str(features.dtype)}


def weights(args: argparse.Namespace) -> dict:
    config = AIMConfig(**PRESETS[args.preset] | (SMALL if args.rehearsal else {}))
    with torch.device("meta"):
        transformer, vae = (
            WanTransformer3DModel(**{name: getattr(config, name) for name in SHARED_FIELDS}),
            make_vae(args),
        )
        if args.rehearsal:
            small = {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1}
            vae = AutoencoderKLWan.from_config(dict(vae.config) | small)
    numbers = {}
    for name, model in (("transformer", transformer), ("vae", vae)):
        folder = args.folder / "wan" / name
        model.save_config(folder)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        written = write_weights(model, folder, "diffusion_pytorch_model")
        numbers[name] = {"parameters": parameters, "written_gb": written}
    return numbers


def from_wan(args: argparse.Namespace) -> dict:
    start = time.perf_counter()
    fields = {}
    if args.rehearsal:
        small = robotwin_processor(tokenizer(), canvas_size=(96, 64))
        fields = {"action_hidden_size": 32, "action_ffn_dim": 32, "processor": small}
    pipe = AIMPipeline.from_wan(args.folder / "wan", dtype=torch.bfloat16, **fields)
    loaded = time.perf_counter()
    pipe.processor.action_statistics = {"q01": [-1.0] * 16, "q99": [1.0] * 16}
    pipe.save_pretrained(args.folder / "aim", max_shard_size="2GB")
    saved = time.perf_counter()
    parameters = sum(parameter.numel() for parameter in pipe.model.parameters())
    return {"parameters": parameters, "loading_seconds": loaded - start, "saving_seconds": saved - loaded}


@torch.no_grad()
def chunk(args: argparse.Namespace) -> dict:
    shutil.rmtree(args.folder / "wan", ignore_errors=True)
    times = [time.perf_counter()]
    pipe = AIMPipeline.from_pretrained(args.folder / "aim")
    features = load_file(args.folder / "prompt.safetensors")["features"]
    pipe.encode_prompt = lambda instruction, allow_empty=False: features  # of the whole text encoder, in stage 1
    times.append(time.perf_counter())
    session = pipe.start(PROMPT)
    first = pipe(observations(pipe, 1, 1), session=session)
    times.append(time.perf_counter())
    pipe.append(session, observations(pipe, 1, pipe.frames_per_chunk), first.actions)
    second = pipe(session=session)
    times.append(time.perf_counter())
    spans = (after - before for before, after in zip(times, times[1:]))
    return {
        "dtype": str(pipe.model.dtype),
        "actions": list(second.actions.shape),
        "frames": {camera: list(frames.shape) for camera, frames in second.frames.items()},
        **dict(zip(("loading_seconds", "first_chunk_seconds", "next_chunk_seconds"), spans)),
    }


STAGES = {"text encoder": text_encoder, "weights": weights, "from_wan": from_wan, "chunk": chunk}


def write_weights(model: torch.nn.Module, folder: Path, stem: str, skip: tuple[str, ...] = ()) -> float:
    """Writes random bfloat16 weights of a model on the meta device, one shard in memory at a time. Returns GB."""
    state = {name: tensor for name, tensor in model.to(torch.bfloat16).state_dict().items() if name not in skip}
    split = split_torch_state_dict_into_shards(
        state, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=SHARD
    )
    generator = torch.Generator().manual_seed(0)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: random_weight(name, state[name].shape, generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    write_json(folder / f"{stem}.safetensors.index.json", index, indent=2)
    return split.metadata["total_size"] / GB


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Outputs keep the scale of inputs, as in a trained model: unit gains, matrices of variance 1 / inputs."""
    is_gain = "norm" in name and name.endswith("weight") or name.endswith("gamma")
    scale = shape[1:].numel() ** -0.5 if len(shape) > 1 and not is_gain else 0.02
    return (torch.randn(shape, generator=generator) * scale + is_gain).to(torch.bfloat16)


if __name__ == "__main__":
    main()
