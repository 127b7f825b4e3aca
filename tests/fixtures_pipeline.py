"""Small random pipelines, made of the real classes, for the tests of codec, processor and pipeline."""

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from aim_hf.model.canvas import t_pose_canvas
from aim_hf.model.configuration_aim import AIMConfig
from aim_hf.model.modeling_aim import AIMForWorldAction
from aim_hf.model.processing_aim import AIMProcessor
from aim_hf.pipeline.pipeline_aim import AIMPipeline

WORDS = "put the red block on blue one ring bell lift pot left right".split()
CANVAS, HEAD, WRIST = (48, 32), (32, 32), (16, 16)


def randomize(module: torch.nn.Module, seed: int, std: float = 0.1) -> torch.nn.Module:
    """Weights that are nowhere zero, so that nothing is hidden behind a zero initialization."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def make_vae(seed: int = 0) -> AutoencoderKLWan:
    """Wan2.2's VAE (residual, 4 x 16 x 16) at a width of 8."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.5, 1.0, 2.0],
        is_residual=True,
        in_channels=48,
        out_channels=48,
        patch_size=4,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
    )
    return randomize(vae, seed, std=0.02)


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def make_processor(action_space: str = "ee", **kwargs) -> AIMProcessor:
    action_dim = {"ee": 16, "qpos": 14}[action_space]
    statistics = {"q01": [-0.3] * action_dim, "q99": [0.5] * action_dim}
    defaults = dict(
        canvas_size=CANVAS,
        cameras=t_pose_canvas(CANVAS, HEAD, WRIST),
        action_space=action_space,
        action_dim=action_dim,
        action_statistics=statistics,
        max_text_length=8,
    )
    return AIMProcessor(make_tokenizer(), **(defaults | kwargs))


def make_pipeline(action_space: str = "ee", seed: int = 0, text_width: int = 16, **config) -> AIMPipeline:
    processor = make_processor(action_space)
    torch.manual_seed(seed)
    text_config = T5Config(
        vocab_size=len(WORDS) + 3,
        d_model=text_width,
        d_kv=text_width // 2,
        d_ff=2 * text_width,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    defaults = dict(
        patch_size=(1, 1, 1),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        action_dim=processor.action_dim,
        action_hidden_size=16,
        action_ffn_dim=32,
        chunk_latent_frames=1,
        actions_per_latent_frame=8,
        history_chunks=2,
    )
    pipe = AIMPipeline(
        vae=make_vae(seed),
        text_encoder=T5EncoderModel(text_config).eval(),
        processor=processor,
        model=randomize(AIMForWorldAction(AIMConfig(**(defaults | config))), seed),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        action_scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_pose(rng: np.random.Generator) -> np.ndarray:
    """One random `ee` pose, (16,)."""
    arms = []
    for _ in range(2):
        quaternion = rng.normal(size=4)
        arms += [rng.uniform(-0.4, 0.4, 3), quaternion / np.linalg.norm(quaternion), rng.uniform(0, 1, 1)]
    return np.concatenate(arms)


def make_views(rng, leading=(2, 3), head=HEAD, wrist=WRIST) -> dict[str, np.ndarray]:
    sizes = {"head_camera": head, "left_camera": wrist, "right_camera": wrist}
    return {name: rng.integers(0, 256, (*leading, *size, 3), dtype=np.uint8) for name, size in sizes.items()}


def make_observation(rng: np.random.Generator) -> dict:
    """A random observation in RoboTwin's layout, with a camera that the canvas has no slot for."""
    sizes = {"head_camera": HEAD, "left_camera": WRIST, "right_camera": WRIST, "front_camera": (7, 9)}
    pose = make_pose(rng)
    return {
        "observation": {
            name: {"rgb": rng.integers(0, 256, (*size, 3), dtype=np.uint8)} for name, size in sizes.items()
        },
        "joint_action": {"vector": rng.normal(size=14)},
        "endpose": {
            "left_endpose": pose[:7],
            "left_gripper": float(pose[7]),
            "right_endpose": pose[8:15],
            "right_gripper": float(pose[15]),
        },
    }
