"""Memory of a GPU that rolls out a whole pipeline: weights, and peaks of encoding a prompt and of two chunks.

    python benchmarks/memory.py --preset wan2.2-ti2v-5b [--text_encoder_device cpu | --offload model]
        [--quantization int8] [--batch_size 8] --output_file benchmarks/results/gpu/memory.json

Weights are random, and made on the GPU; peaks begin after the pipeline is placed. On a CPU only the weights are
counted.
"""

import numpy as np
import torch
from common import CANVAS, TEXT_TOKENS, finish, make_model, parser
from latency import make_text_encoder, make_vae
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aim_hf import AIMPipeline
from aim_hf.model.processing_aim import robotwin_processor
from aim_hf.pipeline.loading import NOT_QUANTIZED
from aim_hf.pipeline.loading_config import OFFLOADS
from aim_hf.pipeline.sampling import new_schedulers

GB = 1e9


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--text_encoder_device", help="where the text encoder stays")
    arguments.add_argument("--offload", choices=OFFLOADS, help="of the text encoder")
    arguments.add_argument("--quantization", choices=["int8"], help="as `aim-hf serve --quantization`")
    args = arguments.parse_args()
    pipe = make_pipeline(args)
    place(pipe, args)
    numbers = {"weights_gb": {name: weights(getattr(pipe, name)) for name in ("model", "vae", "text_encoder")}}
    peaks, rows = {}, args.batch_size
    session = peak(peaks, "prompt", args.device, lambda: pipe.start("lift the pot", batch_size=rows))
    first = peak(peaks, "first chunk", args.device, lambda: pipe(observations(pipe, rows, 1), session=session))
    seen = observations(pipe, rows, pipe.frames_per_chunk)
    peak(peaks, "append", args.device, lambda: pipe.append(session, seen, first.actions))
    peak(peaks, "second chunk", args.device, lambda: pipe(session=session))
    finish(numbers | ({} if args.device == "cpu" else {"peak_gb": peaks}), args)


def make_pipeline(args) -> AIMPipeline:
    model, text_encoder = make_model(args), make_text_encoder(args).eval()
    processor = robotwin_processor(
        tokenizer(),
        canvas_size=CANVAS[args.preset],
        action_statistics={"q01": [-1.0] * 16, "q99": [1.0] * 16},
        max_text_length=TEXT_TOKENS[args.preset],
    )
    pipe = AIMPipeline(
        vae=make_vae(args),
        text_encoder=text_encoder.to(model.dtype),
        processor=processor,
        model=model,
        **new_schedulers(model.config),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tokenizer() -> PreTrainedTokenizerFast:
    """Of a small vocabulary, which makes as many tokens as any other after padding."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def place(pipe: AIMPipeline, args) -> None:
    if args.quantization:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
        from transformers.quantizers.quantizers_utils import should_convert_module

        def is_quantized(module: torch.nn.Module, name: str) -> bool:
            return isinstance(module, torch.nn.Linear) and should_convert_module(name, NOT_QUANTIZED)

        for part in (pipe.model, pipe.text_encoder):
            quantize_(part, Int8WeightOnlyConfig(), filter_fn=is_quantized)
    pipe.vae.to(args.device)
    if args.offload:
        pipe.text_encoder.to("cpu")
        {"model": pipe.enable_model_cpu_offload, "sequential": pipe.enable_sequential_cpu_offload}[args.offload](
            device=args.device
        )
    elif args.text_encoder_device:
        pipe.text_encoder.to(args.text_encoder_device)


def weights(module: torch.nn.Module) -> float:
    """GB of the parameters, as they are stored, wherever they are."""
    total = 0
    for parameter in module.parameters():
        names = getattr(parameter, "tensor_data_names", None)  # of torchao's quantized tensors
        total += sum(getattr(parameter, name).nbytes for name in names) if names else parameter.nbytes
    return total / GB


def peak(peaks: dict[str, float], name: str, device: str, run):
    """The result of `run`; the most memory that the GPU held meanwhile goes into `peaks`."""
    if device == "cpu":
        return run()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    peaks[name] = torch.cuda.max_memory_allocated() / GB
    return result


def observations(pipe: AIMPipeline, rows: int, count: int) -> list[list[dict]]:
    black = {name: {"rgb": np.zeros((*c["size"], 3), np.uint8)} for name, c in pipe.processor.cameras.items()}
    pose = {"left_endpose": [0, 0, 0, 1, 0, 0, 0], "left_gripper": 0.0}
    pose |= {"right_endpose": [0, 0, 0, 1, 0, 0, 0], "right_gripper": 0.0}
    return [[{"observation": black, "endpose": pose}] * count] * rows


if __name__ == "__main__":
    main()
