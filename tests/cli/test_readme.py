"""What the user guide and the README show, run as it stands: every ``sh`` and ``python`` block, and the batch jobs, on small data.

Blocks of other languages (``console``, ``text``) are not run.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import write_broden
from video_clips import put_clips

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GUIDE = (  # in the order in which a page needs what an earlier one made
    "quickstart",
    "models",
    "fitting",
    "labels",
    "influence",
    "report",
    "explaining",
    "correcting",
    "video",
    "clusters",
    "object-storage",
    "only-images",
    "api",
)
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in GUIDE}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


def commands(page: str) -> list[str]:
    """The commands of a page's ``sh`` blocks, in order."""
    return [line for block in blocks("sh", page) for line in block.replace("\\\n", " ").splitlines() if line]


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """An empty bucket of an S3 server of this machine, as environment variables tell of it."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(Request(f"http://{host}:{port}/bucket", method="PUT"), timeout=60).close()
    yield {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    server.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bucket: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """A folder that holds, in small, what the guide's user has: images, checkpoints, Broden, a network."""
    from extract.models import torchvision

    folder = tmp_path_factory.mktemp("guide")
    g = np.random.default_rng(0)
    for data, classes in (("imagenet/val", ("n01", "n02")), ("places365/val_256", ()), ("birds", ("jay", "owl"))):
        for i in range(8):
            file = folder / data / (classes[i % 2] if classes else "") / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(g.integers(0, 256, (6, 6, 3), np.uint8))
            small.resize((90, 80), Image.Resampling.BICUBIC).save(file)
    for i in range(48):
        small = Image.fromarray(g.integers(0, 256, (5, 5, 3), np.uint8))
        file = folder / "photos" / ("jay", "owl")[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small.resize((70, 60), Image.Resampling.BICUBIC).save(file)
    write_broden(folder / "broden1_224")
    put_clips(folder / "videos", 1, classes=("left", "up"))
    (folder / "photo.jpg").write_bytes((folder / "imagenet/val/n01/0.jpg").read_bytes())
    for data in ("clean", "poisoned"):  # class folders by the model's own names
        for i in range(8):
            file = folder / data / ("tench", "goldfish")[i % 2] / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((folder / "imagenet/val" / ("n01", "n02")[i % 2] / f"{i}.jpg").read_bytes())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cache = folder / "torch" / "hub" / "checkpoints"  # where torchvision keeps what it has downloaded before
        cache.mkdir(parents=True)
        for name, file in (("resnet18", "resnet18-f37072fd.pth"), ("resnet50", "resnet50-11ad3fa6.pth")):
            torch.save(getattr(torchvision.models, name)(weights=None).state_dict(), cache / file)
        places = torchvision.models.resnet18(weights=None, num_classes=365)
        state = {f"module.{k}": v for k, v in places.state_dict().items()}
        torch.save({"state_dict": state, "arch": "resnet18"}, folder / "resnet18_places365.pth.tar")
        (folder / "my_models.py").write_text(
            "from torch import nn\n\n\nclass BirdNet(nn.Module):\n    input_size = (32, 32)\n\n"
            "    def __init__(self):\n        super().__init__()\n"
            "        self.features = nn.Sequential(nn.Conv2d(3, 40, 3, 4), nn.ReLU())\n        self.head = nn.Linear(40, 2)\n\n"
            "    def forward(self, x):\n        return self.head(self.features(x).mean((2, 3)))\n\n\n"
            "def birdnet():\n    return BirdNet()\n"
        )
        sys.path.insert(0, str(folder))
        import my_models

        torch.save(my_models.birdnet().state_dict(), folder / "birdnet.pth")
        sys.path.remove(str(folder))
    environment = {
        **os.environ,
        **bucket,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TORCH_HOME": str(folder / "torch"),
        "DATA": str(folder / "imagenet/val"),
        "BRODEN": str(folder / "broden1_224"),
        "OMP_NUM_THREADS": "1",
        "EDDP_FIT_REFITS": "1",  # the commands stay as they are shown; the default of eight takes most of the time
    }
    return folder, environment


def run(script: str, place: tuple[Path, dict[str, str]]) -> str:
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place[0],
        env=place[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_every_command_and_then_the_python(place: tuple[Path, dict[str, str]]) -> None:
    folder, done = place[0], set()
    for page in (*PAGES.values(), README):
        for command in commands(page):
            if command in done:
                continue
            done.add(command)
            # pictures of a ResNet take minutes here, auto fits many times; and of directions from eight images not every one fires
            small = command.replace("eddp report influence", "eddp report influence --visualize none")
            small = small.replace("--directions auto", "--directions 6")
            if "--direction 12" in small:
                small = small.replace(
                    "--direction 12", f"--direction {_widest(folder / 'influence' / 'directions.csv')}"
                )
            run(small, place)
    for made in (
        "evaluation/report.html",
        "comparison/report.html",
        "influence/influence.csv",
        "halves/stability.csv",
        "truth/summary.json",
        "report/index.html",
        "explanation/index.html",
        "correction/correction.safetensors",
        "birds.safetensors",
        "many/report.html",
        "frames.zarr/manifest.jsonl",
        "remote.safetensors",
        "named/class_labels.csv",
        "named/report.html",
    ):
        assert (folder / made).is_file(), made
    shown = [block for page in PAGES.values() for block in blocks("python", page)]
    checked = list(zip(shown, CHECKS, strict=True))
    checked += [(block, "") for block in blocks("python", README) if block not in shown]
    for number, (python, check) in enumerate(checked):
        (folder / f"shown{number}.py").write_text(f"{python}\n{check}\n")
        run(f"{sys.executable} shown{number}.py", place)


def test_no_page_shows_commands_that_are_not_run() -> None:
    shown = {
        file.stem
        for file in DOCS.rglob("*.md")
        if "_build" not in file.parts
        for language in ("sh", "python")
        if blocks(language, file.read_text(encoding="utf-8"))
    }
    assert shown <= set(GUIDE)


def _widest(table: Path) -> int:
    """The direction that fires most."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["directions"] == "eddp"]
    return int(max(rows, key=lambda row: float(row["share"]))["index"])


CHECKS = (
    "assert x.shape == (3, 49, 512) and detected.shape == values.shape == (3, 49, 64)",
    "import torch\nassert corrected(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)",
    "assert block.shape == (len(images), 49, 512) and batch.x.shape[1] == 512 and rows.shape == (3, 512)\n"
    "assert moments.covariance.shape == (512, 512) and quantiles.shape == (2, 512) and brightest.shape == (512,)",
)


def test_the_jobs_of_a_cluster() -> None:
    """What the scripts do is tested where they are; here: the line that is shown names one of them, and only what it reads."""
    (block,) = blocks("bash", PAGES["clusters"])
    script = ROOT / re.findall(r"\S+\.sh", block)[0]
    assert os.access(script, os.X_OK)
    text = script.read_text()
    for name in re.findall(r"([A-Z]+)=", block):
        assert f"${{{name}:" in text, name


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for pair in re.findall(r"^make (\w+)|`make (\w+)`", README + PAGES["quickstart"], re.M):
        assert f"\n{''.join(pair)}:" in makefile


def test_links_and_pictures_exist() -> None:
    """Of the documentation's pages ``make docs`` looks at links between them."""
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).is_file(), link
    for page in PAGES.values():
        for link in re.findall(r"\]\((http[^)]*)\)", page):
            assert re.fullmatch(r"https?://[\w.-]+\.\w+(/[\w./-]*)?", link), link
