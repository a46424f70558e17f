"""``examples/video``, run as they stand on drawn videos in the layouts of the real datasets."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from extract.models import torchvision
from stores.store import ActivationStore
from tests.helpers.motion_net import write_dataset
from tests.helpers.video_clips import put_clips

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "video"
CLASSES = [f"class {k}" for k in range(303)] + ["up", "left"]  # 305 in an order of their own


def run(script: str, folder: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DIRECTIONS": "4",
        "EDDP_FIT_REFITS": "0",
        "WORK": str(folder / "work"),
        **{name: str(value) for name, value in variables.items()},
    }
    return subprocess.run(
        [str(EXAMPLES / script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def put_moments(root: Path) -> Path:
    put_clips(root / "validation", 3, classes=("left", "up"))
    names = sorted(path.relative_to(root / "validation").as_posix() for path in root.rglob("*.mp4"))
    (root / "validationSet.csv").write_text("".join(f"{name},{name.partition('/')[0]},3,0\n" for name in names))
    (root / "moments_categories.txt").write_text("left,0\nup,1\n")
    return root


def put_actions(root: Path) -> Path:
    """Broden Action in small: images, each with one action as a whole."""
    (root / "images").mkdir(parents=True)
    (root / "label.csv").write_text("number,name,category\n1,jumping,action(4)\n2,running,action(4)\n")
    g = np.random.default_rng(0)
    with (root / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "split", "ih", "iw", "sh", "sw", "action"])
        for k in range(8):
            small = Image.fromarray(g.integers(0, 256, (5, 5, 3), np.uint8))
            small.resize((80, 60)).save(root / "images" / f"{k}.jpg")
            table.writerow([f"{k}.jpg", ("train", "val")[k % 4 > 1], 60, 80, 15, 20, 1 + k % 2])
    return root


@pytest.mark.slow
def test_moments_in_time_from_its_files_to_labels(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.resnet50(weights=None, num_classes=305)
    weights = tmp_path / "moments_v2_RGB_resnet50_imagenetpretrained.pth.tar"
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 90, "arch": "resnet50", "state_dict": state}, weights)
    (tmp_path / "category_momentsv2.txt").write_text("\n".join(CLASSES) + "\n")
    mit, broden = put_moments(tmp_path / "Moments_in_Time_Mini"), put_actions(tmp_path / "broden_action")
    (mit / "validation/up/up_1.mp4").write_bytes(b"cut short")
    ended = run(
        "moments.sh",
        tmp_path,
        MIT=mit,
        WEIGHTS=weights,
        CLASSES=tmp_path / "category_momentsv2.txt",
        BRODEN=broden,
        FRAMES=4,
    )
    assert ended.returncode == 0, ended.stderr
    store = ActivationStore.open(tmp_path / "work/acts.zarr")
    assert store.names[:2] == ["left/left_0.mp4#0", "left/left_0.mp4#1"]
    valid = store.array("images/valid").read(0).astype(bool)
    assert [name.partition("#")[0] for name, good in zip(store.names, valid, strict=True) if not good] == [
        "up/up_1.mp4"
    ] * 4
    assert store.class_names == CLASSES
    layer = store.layer("layer4")
    assert (layer.grid, layer.channels, layer.time) == ((7, 7), 2048, 1)
    summary = json.loads((tmp_path / "work/evaluation/summary.json").read_text())["directions"]["directions"]
    assert summary["per_category"].keys() == {"action"}
    assert "autocorrelation" in summary
    # what the network saw of a frame: all of it, squashed
    frames = [torch.from_numpy(store.array("images/logits").read(0)[k]) for k in (0, 1)]
    transform = torchvision.transforms.Compose([
        torchvision.transforms.Resize((224, 224)), torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    from extract.video import Clip

    seen = Clip(mit / "validation/left/left_0.mp4", "a").frames(4)[:2]
    with torch.no_grad():
        wanted = network.eval()(torch.stack([transform(frame) for frame in seen]))
    assert torch.allclose(torch.stack(frames), wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.slow
def test_a_network_that_takes_clips_on_a_folder_of_videos(tmp_path: Path) -> None:
    write_dataset(tmp_path / "clips", 2)
    model = {"MODEL": "tests.helpers.motion_net:motion_net", "LAYER": "late"}
    ended = run("kinetics.sh", tmp_path, VIDEOS=tmp_path / "clips/images", **model)
    assert ended.returncode == 0, ended.stderr
    assert ActivationStore.open(tmp_path / "work/acts.zarr").layer("late").time == 4
    assert (tmp_path / "work/evaluation/influence.csv").is_file()
