"""Windows whose latents are kept on disk are those that are encoded."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fixtures_dataset import REPO_ID, make_dataset
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy
from lerobot_policy_aim import AIMPolicy, AIMPolicyConfig
from lerobot_policy_aim.configuration_aim import VALUE_MAP
from lerobot_policy_aim.dataset import encode_pictures
from lerobot_policy_aim.latents_cache import dataset_fingerprint
from torch.utils.data import default_collate

from aim_hf.model.canvas import t_pose_canvas
from tests.fixtures_pipeline import HEAD, WRIST, make_pipeline, make_processor


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "base"
    make_pipeline("qpos").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("datasets") / "dataset", "qpos")


def open_policy(base: Path, dataset: Path, **fields) -> AIMPolicy:
    config = AIMPolicyConfig(base_model_id=str(base), device="cpu", **({"window_chunks": 2} | fields))
    return make_policy(config, ds_meta=LeRobotDatasetMetadata(REPO_ID, root=dataset))


def make_batch(policy: AIMPolicy, dataset: Path, indices: list[int]) -> dict:
    metadata = LeRobotDatasetMetadata(REPO_ID, root=dataset)
    timestamps = resolve_delta_timestamps(policy.config, metadata)
    windows = LeRobotDataset(REPO_ID, root=dataset, delta_timestamps=timestamps)
    return default_collate([windows[index] for index in indices])


def loss(policy: AIMPolicy, batch: dict) -> torch.Tensor:
    torch.manual_seed(0)
    return policy.forward(batch)[0]


def test_a_window_is_encoded_once(base, dataset, tmp_path, monkeypatch):
    policy = open_policy(base, dataset, latents_dir=str(tmp_path / "latents"))
    batch = make_batch(policy, dataset, [0, 5])
    expected = encode_pictures(batch, policy.pipeline, policy.cameras)
    for name, tensor in policy._latents_of(batch).items():
        torch.testing.assert_close(tensor, expected[name].float(), rtol=1e-3, atol=1e-3)
    first = loss(policy, batch)

    policy = open_policy(base, dataset, latents_dir=str(tmp_path / "latents"))
    rows, encode = [], encode_pictures
    monkeypatch.setattr(
        "lerobot_policy_aim.modeling_aim.encode_pictures",
        lambda clips, *rest: rows.append(len(clips["observation.images.head_camera"])) or encode(clips, *rest),
    )
    assert torch.equal(loss(policy, batch), first) and rows == []
    loss(policy, make_batch(policy, dataset, [5, 7, 0]))
    assert rows == [1]  # frame 7 alone


@pytest.mark.parametrize(
    "other, told",
    [
        ("window", "window_chunks 2 there, 3 now"),
        ("codec", "video_encoder"),
        ("canvas", r"canvas_size \[48, 32\] there, \[96, 64\] now"),
        (
            "cameras",
            "cameras.*features.head_camera 'observation.images.head_camera' there, None now; "
            "features.left_camera 'observation.images.left_camera' there, 'observation.images.head_camera' now",
        ),
        ("dataset", "files"),
        ("video", "files"),
        ("episodes", "files"),
    ],
)
def test_latents_of_something_else_are_refused(base, dataset, tmp_path, other, told):
    open_policy(base, dataset, latents_dir=str(tmp_path / "latents"))
    fields = {}
    if other == "window":
        fields["window_chunks"] = 3
    elif other == "cameras":
        fields["cameras"] = {"left_camera": "observation.images.head_camera"}
    elif other == "dataset":
        dataset = make_dataset(tmp_path / "dataset", "qpos", value_maps=False)
    elif other in ("video", "episodes"):  # another revision, whose files have the same sizes
        dataset = shutil.copytree(dataset, tmp_path / "dataset")
        folder, name = {"video": ("videos", "*.mp4"), "episodes": ("meta/episodes", "*.parquet")}[other]
        change(next((dataset / folder).rglob(name)), other)
    else:
        pipe, base = make_pipeline("qpos"), tmp_path / "base"
        if other == "codec":
            next(pipe.vae.encoder.parameters()).data.add_(1)
        else:
            cameras = t_pose_canvas((96, 64), HEAD, WRIST)
            pipe.register_modules(processor=make_processor("qpos", canvas_size=(96, 64), cameras=cameras))
        pipe.save_pretrained(base)
    with pytest.raises(FileExistsError, match=f"latents was made from something else: .*{told}"):
        open_policy(base, dataset, latents_dir=str(tmp_path / "latents"), **fields)


def test_videos_in_a_linked_folder_belong_to_the_dataset(dataset, tmp_path):
    """As those of a camera on another disk."""
    folder = shutil.copytree(dataset, tmp_path / "dataset")
    camera = folder / "videos" / "observation.images.head_camera"
    linked = camera.rename(tmp_path / "elsewhere")
    camera.symlink_to(linked)
    assert dataset_fingerprint(folder) == dataset_fingerprint(dataset)
    change(next(linked.rglob("*.mp4")), "video")
    assert dataset_fingerprint(folder) != dataset_fingerprint(dataset)


def change(path: Path, kind: str) -> None:
    """A video's last byte, or where an episode's first frame is in it."""
    if kind == "video":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        return
    table = pq.read_table(path)
    column = next(name for name in table.column_names if name.endswith("/from_timestamp"))
    times = pa.array([time + 0.08 for time in table[column].to_pylist()], table.schema.field(column).type)
    pq.write_table(table.set_column(table.column_names.index(column), column, times), path)


def test_changed_pictures_and_damaged_files_are_named(base, dataset, tmp_path):
    policy = open_policy(base, dataset, latents_dir=str(tmp_path / "latents"))
    batch = make_batch(policy, dataset, [3])
    loss(policy, batch)
    brighter = batch | {"observation.images.head_camera": batch["observation.images.head_camera"] + 0.1}
    with pytest.raises(ValueError, match="first picture of frame 3 isn't .*--dataset.image_transforms.enable"):
        loss(policy, brighter)
    left, right = "observation.images.left_camera", "observation.images.right_camera"
    dark = batch | {right: batch[right] / 2}
    for changed in (dark, {name: value for name, value in batch.items() if not name.startswith(VALUE_MAP)}):
        with pytest.raises(ValueError, match="first picture of frame 3 isn't .*give the same --rename_map"):
            loss(policy, changed)
    assert torch.equal(loss(policy, batch), loss(policy, batch | {left: batch[left].clone()}))
    (file,) = (tmp_path / "latents").rglob("*.safetensors")
    file.write_bytes(b"damaged")
    with pytest.raises(OSError, match="00000003.safetensors can't be read .*delete the file"):
        loss(policy, batch)
    shutil.rmtree(tmp_path / "latents")


def test_a_policy_without_a_dataset_does_not_train(base, dataset):
    policy = AIMPolicy.from_pipeline(base)
    with pytest.raises(ValueError, match="loaded to act, without a dataset; give from_pretrained its dataset_meta"):
        policy.forward({})
