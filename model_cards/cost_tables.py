"""Tables of costs, measured or counted: time, memory, operations, bytes and packages."""

from operator import itemgetter
from statistics import mean
from typing import Any

from markdown_tables import bullets, measured, origin, pairs, read, table

from aim_hf.utils.provenance import machine

SIZES = {"tiny": "`tiny`", "tiny-x4": "`tiny`, 4 times wider", "wan2.2-ti2v-5b-2-layers": "5B's width, two layers"}
RATIOS = {
    "uncached_over_cached_at_16": "a chunk after 16 others without a cache, over ours",
    "flatness_after_window": "the 32nd chunk over the first one with a full window",
    "lingbot_settings_over_ours": "a chunk at LingBot-VA's settings over ours at our defaults",
    "lingbot_settings_over_ours_counted": "the same, operations counted, all layers",
    "backbone_action_loop_over_ours": "the action steps through the video backbone, over ours",
    "backbone_action_loop_over_ours_counted": "those, operations counted, all layers",
    "action_step_over_video_step": "an action step over a video step",
    "packed_over_single_chunk": "supervised tokens a second, eight chunks packed over one at a time",
}
# Variants of the code now and before -> the result file.
PAIRED = {"each one's default variant": "paired-0.1", "`aim` in both": "paired-0.1-aim"}
ROBOTWIN_EPISODES = 30_000  # 300 of each of 50 tasks and both splits


def speed() -> str:
    """The benchmarks' ratios at each size that was measured."""
    columns, machines = {"ratio": RATIOS.get}, {}
    for size, title in SIZES.items():
        kinds = [kind for kind in ("rollout", "latency", "training") if measured(f"{kind}/{size}")]
        found = {name: value for kind in kinds for name, value in read(f"{kind}/{size}").items()}
        for kind in kinds:
            machines.setdefault(machine(read(f"{kind}/{size}")["hardware"]), {})[f"`{kind}.py`"] = None
        columns[title] = lambda name, found=found: f"{found[name]:.3g}" if found.get(name) is not None else ""
    where = "; ".join(f"{', '.join(kinds)}: {name}" for name, kinds in machines.items())
    return (
        f"{table(columns, RATIOS)}\nMeasured in float32, alternatives in turn within one run ({where}). Times of each "
        "stage, commands and commits are in `benchmarks/results`.\n"
    )


def chunks() -> str:
    """Costs of a chunk of AIM, and of other methods at equal width, over those of AIM as in the paper."""
    sizes = {size: title for size, title in SIZES.items() if measured(f"latency/chunks-{size}")}
    results = {title: read(f"latency/chunks-{size}") for size, title in sizes.items()}
    columns = {"a chunk": str}
    for title, result in results.items():
        columns[f"{title}: time"] = lambda name, times=result["time_over_baseline"]: f"{times[name]:.3g}"
        columns[f"{title}: operations"] = lambda name, of=result["operations_over_baseline"]: f"{of[name]:.3g}"
    rows = next(iter(results.values()))["time_over_baseline"]
    where = "; ".join(dict.fromkeys(origin(result) for result in results.values()))
    return f"{table(columns, rows)}\nMeasured in float32, all chunks of a column in turn within one run. {where}\n"


def paired_latency() -> str:
    """Time and operator events of a chunk over those of the code before version 0.2."""
    results = {title: read(f"latency/{name}") for title, name in PAIRED.items()}
    rows = [(name, parts, title) for title, result in results.items() for name, parts in result["ratios"].items()]
    columns = {
        "measured": itemgetter(0),
        "variant": itemgetter(2),
        "time (95 % interval)": lambda row: "{after_over_before:.2f} ({0:.3f} to {1:.3f})".format(
            *row[1]["interval"], **row[1]
        ),
        "operator events": lambda row: "{after:,} of {before:,}".format(**row[1]["events"]),
    }
    commit = next(iter(results.values()))["commits"]["before"][:7]
    return (
        f"{table(columns, rows)}\nAgainst commit {commit}, call by call in turn, in one thread and in float32:\n\n"
        f"{bullets(results)}"
    )


def counted(result: dict[str, Any]) -> dict[str, Any]:
    """The columns of a budget in the tables."""
    memory, settings = result["memory_gb"], result["settings"]
    trained = "LoRA" if settings["lora_rank"] else "all"
    options = [f"--preset {settings['preset']}", f"--gpus {settings['gpus']}"]
    for name in ("canvas_size", "lora_rank"):
        if settings[name]:
            value = settings[name]
            options.append(f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return {
        "trained": f"{trained}, {float(result['parameters']['trained here'].split()[0]):.2f} B",
        "weights": memory["weights, split"],
        "states": sum(gb for name, gb in memory.items() if name.endswith("float32 and split")),
        "activations": memory["activations"],
        "checkpointed": memory["activations with activation checkpointing"],
        "total": memory["total with activation checkpointing"],
        "tflop": sum(result["training_tflop"].values()),
        "options": f"`{' '.join(options)}`",
        "canvas": settings["canvas_size"] or [384, 320],
    }


def budgets() -> str:
    """Memory of a GPU in training, and operations of a sequence, of each set-up."""
    setups = {"5b-8-gpus": "5B, 8 GPUs", "5b-lora": "5B, 1 GPU", "5b": "5B, 1 GPU", "1.3b-lora": "1.3B, 1 GPU"}
    setups |= {"1.3b": "1.3B, 1 GPU", "1.3b-small-lora": "1.3B, 1 GPU", "1.3b-small": "1.3B, 1 GPU"}
    results = [(title, counted(read(f"budget/{name}"))) for name, title in setups.items()]
    columns = {
        "model": lambda row: row[0],
        "canvas": lambda row: "{} x {}".format(*row[1]["canvas"]),
        "trained": lambda row: row[1]["trained"],
        "weights": lambda row: f"{row[1]['weights']:.1f}",
        "gradients, AdamW, averages": lambda row: f"{row[1]['states']:.1f}",
        "activations": lambda row: f"{row[1]['activations']:.1f}",
        "checkpointed": lambda row: f"{row[1]['checkpointed']:.1f}",
        "in all, checkpointed": lambda row: f"**{row[1]['total']:.1f}**",
        "TFLOP": lambda row: f"{row[1]['tflop']:.0f}",
        "options": lambda row: row[1]["options"],
    }
    commit = read("budget/5b")["commit"][:10]
    return f"{table(columns, results)}\nCounted by `benchmarks/budget.py` with these options (commit {commit}).\n"


def machines() -> str:
    """Memory, counted hours and command of each use of each machine."""

    def row(machine: str, what: str, name: str, command: str) -> tuple[str, ...]:
        result = read(f"budget/{name}")
        memory, settings = result["memory_gb"]["total with activation checkpointing"], result["settings"]
        hours = f"{result['hours']:.0f} h for {settings['sequences']:,} sequences"
        return machine, what, f"{memory:.0f} GB", hours, f"`{command}`"

    def served(machine: str, what: str, name: str, command: str) -> tuple[str, ...]:
        result = read(f"budget/{name}")
        parts, history = result["serving_gb"], result["rollout_memory_gb"]["history_chunks of the preset"]
        return machine, what, f"{parts['model'] + parts['VAE'] + history:.0f} GB", "", command

    train = "accelerate launch {} -m aim_hf train --bf16 --activation_checkpointing {}..."
    one, lora = "--config_file pipelines/accelerate/gpu.yaml", "--lora_rank 64 "
    serve = "`aim-hf serve --dtype bfloat16 --text_encoder_device cpu ...`"
    eight = train.format("--config_file pipelines/accelerate/fsdp2.yaml", "")
    rows = [
        ("laptop", "watch `aim-tiny` act", "", "", "`aim-hf app`, `aim-hf demo`"),
        ("laptop", "train one task from nothing", "", "", "`make train-click-bell`"),
        row("24 GB", "fine-tune 1.3B, canvas 192 x 160", "1.3b-small-lora", train.format(one, lora)),
        served("24 GB", "serve or evaluate 5B", "5b", serve),
        row("one H100", "fine-tune 5B", "5b-lora", train.format(one, lora)),
        row("one H100", "train all of 1.3B, canvas 192 x 160", "1.3b-small", train.format(one, "")),
        row("eight H100", "train all of 5B", "5b-8-gpus", eight),
    ]
    names = ("machine", "what", "memory", "hours, counted", "command")
    columns = {name: itemgetter(index) for index, name in enumerate(names)}
    share, tflops = read("budget/5b")["settings"]["share"], read("budget/1.3b-small-lora")["settings"]["tflops"]
    return (
        f"{table(columns, rows)}\nHours are operations over {share:.0%} of the peak in bfloat16, 989 TFLOP/s of an "
        f"H100 SXM or {tflops:.0f} of an RTX 4090. Nobody measured them.\n"
    )


def cluster() -> str:
    """Stage 1 of the 5B model on clusters."""
    result = read("cluster/wan2.2-ti2v-5b")
    settings, data, encoding = (result[name] for name in ("settings", "data", "encoding"))
    columns = {
        "GPUs": itemgetter("gpus"),
        "set-up": itemgetter("set-up"),
        "memory, GB": lambda row: f"{row['memory_gb']:.1f}",
        "sequences a step": itemgetter("sequences_per_step"),
        "steps": lambda row: f"{row['steps']:,}",
        "NVLink, GB": lambda row: f"{row['nvlink_gb']:.1f}",
        "network, GB": lambda row: f"{row['network_gb']:.1f}",
        "computing, s": lambda row: f"{row['compute_seconds']:.2f}",
        "communicating, s": lambda row: f"{row['communication_seconds']:.2f}",
        "hours": lambda row: f"{row['hours']:.2f} to {row['hours_without_overlap']:.2f}",
        "GPU hours": lambda row: f"{row['gpu_hours']:.0f}",
        "latents, MB/s": lambda row: f"{row['latents_read_mb_per_second']:.0f}",
    }
    return (
        f"{table(columns, result['rows'])}\n{settings['episodes']:,} episodes of {settings['episode_steps']} control "
        f"steps are {data['parquet_gb']:.0f} GB of Parquet and {data['latents_gb']:.0f} GB of latents. Encoding them "
        f"is {encoding['video_pflop']:,.0f} PFLOP of the VAE and {encoding['text_pflop']:,.0f} of the text encoder, "
        f"{encoding['gpu_hours']:.1f} GPU hours that read {encoding['parquet_mb_per_second_and_gpu']:.1f} MB/s. "
        f"{settings['sequences']:,} sequences of {settings['chunks']} chunks are {data['epochs']:.1f} epochs, "
        f"{result['rows'][0]['tflop_per_gpu']:.0f} TFLOP each.\n\nCounted by {origin(result)}; nothing is measured.\n"
    )


def full_size() -> str:
    """A folder in Wan2.2-TI2V-5B's layout, once through everything on a CPU."""
    found = read("full_size")
    stages = {
        "text encoder": "the text encoder is written, loaded, encodes a prompt and is let go",
        "weights": "transformer and VAE are written",
        "from_wan": "`AIMPipeline.from_wan`, then `save_pretrained`",
        "chunk": "the saved pipeline is loaded; two chunks in bfloat16",
    }
    columns = {
        "stage": stages.get,
        "seconds": lambda name: f"{found['stages'][name]['seconds']:,.0f}",
        "peak of memory, GB": lambda name: f"{found['stages'][name]['peak_memory_gb']:.1f}",
        "read from the disk, GB": lambda name: f"{found['stages'][name]['read_from_disk_gb']:.1f}",
        "then on the disk, GB": lambda name: f"{found['stages'][name]['disk_gb']:.1f}",
    }
    return f"{table(columns, stages)}\nMeasured by {origin(found)}: a machine of 24 GB.\n"


def gpu_time() -> str:
    """Minutes that `gpu.sh` takes, as `gpu_time.py` estimates."""
    found = read("gpu_time")
    settings, tflop = found["settings"], sum(found["tflop"].values())
    return (
        f"By counting, it takes {found['minutes']:.1f} minutes: {tflop:,.0f} TFLOP at {settings['share']:.0%} of "
        f"{settings['tflops']:.0f} TFLOP/s are {tflop / settings['share'] / settings['tflops']:.0f} s; the rest is "
        "assumed, "
        f"{settings['start']:.0f} s a stage for imports and weights, and {settings['compile']:.0f} s where layers are "
        f"compiled. {origin(found)}.\n"
    )


def robotwin_cost() -> str:
    """A core's seconds and bytes of RoboTwin's episodes with stand-in assets; what `ROBOTWIN_EPISODES` then take."""
    found = read("robotwin_cost")
    quantities = {
        "a core's seconds": lambda row: sum(row["seconds"].values()),
        "of these, the simulator": lambda row: row["seconds"]["simulator"],
        "of these, labels and videos": lambda row: row["seconds"]["labels and videos"],
        "frames": itemgetter("frames"),
        "MB": lambda row: row["bytes"] / 1e6,
    }
    rows = {split: {} for split in ("easy", "hard")}
    for name, row in found["tasks"].items():
        task, split = name.split("/")
        if "problem" not in row:
            rows[split][task] = row
    easy = {name: [of(row) for row in rows["easy"].values()] for name, of in quantities.items()}
    ratio = {  # of Hard to Easy, on the tasks that were measured on both
        name: sum(map(of, rows["hard"].values())) / sum(of(rows["easy"][task]) for task in rows["hard"])
        for name, of in quantities.items()
    }
    columns = {"of an episode": str} | {
        name: lambda row, of=of: f"{of(easy[row]):.3g}"
        for name, of in (("Easy, mean", mean), ("least", min), ("most", max))
    }
    columns["Hard to Easy"] = lambda row: f"{ratio[row]:.2f}"
    hours, size = (mean(easy[name]) * (1 + ratio[name]) / 2 * ROBOTWIN_EPISODES for name in ("a core's seconds", "MB"))
    simulator = next(iter(rows["easy"].values()))["simulator"]
    start = mean(row["start_seconds"] for row in rows["easy"].values())
    return (
        f"{table(columns, quantities)}\nMeasured by `{found['command'].split()[0]}` on {machine(found['hardware'])}, "
        f"beside other programs, on an episode of each of {len(rows['easy'])} tasks, and {len(rows['hard'])} on Hard: "
        f"{simulator['assets']}, shader `{simulator['shader']}`, planner `{simulator['planner']}`. "
        f"A simulator starts in {start:.1f} s more. At these "
        f"means, {ROBOTWIN_EPISODES:,} episodes, half of them Hard, take {hours / 3600:.0f} core "
        f"hours and {size / 1e3:.0f} GB.\n"
    )


def serving() -> str:
    """Requests and latency of the policy server under load."""
    found = read("serving/tiny")
    settings, requests, latency = found["settings"], found["requests"], found["latency_seconds"]
    rows = {
        "clients, rows of a batch": f"{settings['clients']}, {settings['rows']}",
        "requests answered, lost": f"{requests['answered']}, {requests['lost']}",
        "requests a second": f"{found['requests_per_second']:.1f}",
        "latency, median and 99th percentile": f"{latency['p50']:.1f} s, {latency['p99']:.1f} s",
    }
    return f"{pairs(rows)}\nMeasured by {origin(found)}.\n"


def dataset() -> str:
    """Costs of collecting, storing and reading, and of 30,000 episodes of RoboTwin."""
    collect, size, reading = (read(f"dataset/{name}") for name in ("collect", "size", "read"))
    frames, hard, rate = size["frames_of_an_episode"], size["hard"], reading["windows_per_second"]
    seconds = frames * (hard["seconds_per_frame"]["labelling"] + hard["seconds_per_frame"]["encoding"])
    rows = {
        "collecting `tabletop`, one core": f"{collect['episodes_per_hour_and_core']:,.0f} episodes an hour",
        "of which": ", ".join(f"{name} {share:.0%}" for name, share in collect["shares"].items()),
        "labelling over simulating and rendering": f"{collect['labelling_over_simulating_and_rendering']:.1%}",
    }
    for split in ("easy", "hard"):
        rgb, value = (size[split]["bytes_per_frame"][name] / 1e3 for name in ("rgb", "value"))
        rows[f"an episode of {frames} frames, three views of 320 x 240, {split.capitalize()}"] = (
            f"{size[split]['megabytes_per_episode']:.2f} MB (RGB {rgb:.1f} kB and value maps {value:.1f} kB a frame)"
        )
    rows |= {
        "random windows, maps rendered": f"{rate['windows_rendered']:.1f} a second",
        "random windows, maps decoded": f"{rate['windows_decoded']:.1f} a second",
        "decoding the whole episode for each": f"{rate['whole_episodes']:.1f} a second: "
        f"{reading['windows_over_whole_episodes']:.1f} times slower",
        "lerobot's own reader, maps decoded": f"{rate['lerobot']:.1f} a second: "
        f"{reading['windows_decoded_over_lerobot']:.1f} times slower",
    }
    plan = {"a seed takes": lambda seed: f"{seed} s"} | {
        f"{share} % of seeds succeed": lambda seed, share=share: f"{300 * (100 * seed / share + seconds) / 864:.1f}"
        for share in (90, 60, 30)
    }
    return f"""{pairs(rows)}
Measured on {machine(collect["hardware"])}, one process; commands and commits are in `benchmarks/results/dataset`.

30,000 episodes of {frames} frames are {hard["gigabytes_of_30000_episodes"]:.0f} GB at Hard's size. Labelling and \
encoding one takes {seconds:.1f} s of a core. The time of RoboTwin's own simulation, ray tracing and planning on a \
GPU has not been measured here. Days of one process, by the time for a seed and the share of seeds on which the \
expert succeeds:

{table(plan, (20, 60, 120))}"""


def installation() -> str:
    """Packages, megabytes and seconds of import, of the core and of each extra, and of the package before extras."""
    now, before = read("installation"), read("installation-before")
    rows = {name if name == "core" else f"`{name}`": extra for name, extra in now["extras"].items()}
    rows[f"before there were extras ({before['project_commit'][:10]})"] = before["extras"]["core"]
    seconds = [[*extra["import_seconds"].values(), extra["torch_seconds"]] for extra in rows.values()]
    imports = ("`import aim_hf`", "`from aim_hf import AIMPipeline`", "`import torch`")
    columns = {
        "installed": lambda row: row[0],
        "packages": lambda row: row[1]["packages"],
        "MB": lambda row: f"{row[1]['megabytes']:,}",
        **{name: lambda row, index=index: f"{row[2][index]:.2f} s" for index, name in enumerate(imports)},
    }
    measured_by = f"Measured by {origin(now)}; the last row by {origin(before)}."
    return f"{table(columns, zip(rows, rows.values(), seconds))}\n{measured_by}\n"
