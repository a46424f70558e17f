"""A small convolutional network for the drawn world's scenes, and its training.

``scene_net`` is a model callable as a user would write one: ``--model pipeline.scene_net:scene_net --weights
scene_net.safetensors``. The last block of ``features`` is the layer to look for concepts in: a ReLU output of 80
channels on a 12 x 12 grid, followed by average pooling and one linear layer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.world.scenes import MARKED_SCENE, SCENES
from stores.errors import NoImagesError, UsageError
from stores.progress import Progress, silent

SIZE = 96
MEAN, STD = (0.48, 0.47, 0.47), (0.26, 0.25, 0.26)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class SceneTransform:
    """PIL image -> float32 (3, 96, 96), normalised. Picklable."""

    size: int = SIZE
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __call__(self, image: Image.Image) -> Tensor:
        return normalise(torch.from_numpy(load_pixels(image, self.size)), self.mean, self.std)


def load_pixels(image: Image.Image, size: int = SIZE) -> np.ndarray:
    """RGB bytes (3, size, size) of an image, resized where it is of another size."""
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalise(pixels: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Bytes (..., 3, h, w) -> float32, zero mean and unit variance over the world."""
    shift, scale = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    return (pixels.float() / 255 - shift) / scale


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class SceneNet(nn.Module):
    """Conv-BN-ReLU blocks, global average pooling, dropout and a linear classifier.

    Shapes for an input (n, 3, 96, 96): 48 x 48 after the first block, 24 x 24 after the second, 12 x 12 after the
    third; ``features[14]``, the last ReLU, is (n, 80, 12, 12).
    """

    input_size = (SIZE, SIZE)
    class_names = SCENES

    def __init__(self, classes: int = len(SCENES)) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 24, kernel=5, stride=2),  # 0-2: n 24 48 48
            *_block(24, 40, stride=2),  # 3-5: n 40 24 24
            *_block(40, 64, stride=2),  # 6-8: n 64 12 12
            *_block(64, 80),  # 9-11: n 80 12 12
            *_block(80, 80),  # 12-14: n 80 12 12
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(80, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, 96, 96) -> logits (n, classes)."""
        x = self.features(images)  # n c 12 12
        x = self.flatten(self.pool(x))  # n c
        return self.classifier(self.dropout(x))


def scene_net() -> tuple[SceneNet, SceneTransform]:
    """The network for the drawn world's scenes, with arbitrary weights, and the transform of its images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = SceneNet()
    return module.eval(), SceneTransform()


@dataclass(frozen=True)
class Recipe:
    """How ``train_scene_net`` trains: one-cycle AdamW with label smoothing, shifts and brightness as augmentation."""

    batch: int = 64
    rate: float = 4e-3
    weight_decay: float = 0.02
    smoothing: float = 0.05
    shift: int = 4
    brightness: float = 0.12


def _list(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Images of the class folders below ``folder``, each with its class number, in order."""
    listed = [(p, k) for k, c in enumerate(classes) for p in sorted((folder / c).glob("*")) if p.suffix in SUFFIXES]
    if not listed:
        raise NoImagesError(f"'{folder}' holds no images in class folders such as '{classes[0]}/'")
    return listed


def _load(listed: list[tuple[Path, int]], stage: str, progress: Progress) -> tuple[Tensor, Tensor]:
    """All these images in memory: bytes (n, 3, 96, 96) and class numbers (n,)."""
    pixels = torch.empty((len(listed), 3, SIZE, SIZE), dtype=torch.uint8)
    for n, (path, _) in enumerate(listed):
        with Image.open(path) as image:
            pixels[n] = torch.from_numpy(load_pixels(image))
        if n % 200 == 0 or n + 1 == len(listed):
            progress(stage, n + 1, len(listed))
    return pixels, torch.tensor([k for _, k in listed])


def _augment(pixels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``shift`` pixels (edges repeated) and change its brightness. No flips: text has a side."""
    n, s = len(pixels), recipe.shift
    padded = nn.functional.pad(normalise(pixels), (s, s, s, s), mode="replicate")
    offsets = torch.randint(0, 2 * s + 1, (n, 2), generator=generator).tolist()
    shifted = torch.stack([padded[k, :, y : y + SIZE, x : x + SIZE] for k, (y, x) in enumerate(offsets)])
    gain = 1 + recipe.brightness * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    return shifted * gain


@torch.no_grad()
def _predict(net: SceneNet, pixels: Tensor) -> Tensor:
    """Most likely class of every image; leaves the network in eval mode."""
    net.eval()
    batches = [net(normalise(part)) for part in pixels.split(200)]
    return torch.cat(batches).argmax(1)


def _train(net: SceneNet, pixels: Tensor, labels: Tensor, epochs: int, seed: int, progress: Progress) -> None:
    recipe = Recipe()
    generator = torch.Generator().manual_seed(seed)
    steps = -(-len(pixels) // recipe.batch) * epochs
    decayed = [p for p in net.parameters() if p.ndim > 1]
    kept = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps, pct_start=0.25)
    loss_function = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    net.train()
    step, told = 0, 0.0
    for epoch in range(epochs):
        order = torch.randperm(len(pixels), generator=generator)
        for rows in order.split(recipe.batch):
            images = _augment(pixels[rows], recipe, generator)
            loss = loss_function(net(images), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if time.monotonic() - told > 0.5 or step == steps:
                told = time.monotonic()
                progress("training the network", step, steps, f"epoch {epoch + 1}, loss {loss.item():.3f}")


def train_scene_net(
    folders: Path,
    out: Path,
    *,
    epochs: int = 12,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a ``SceneNet`` on class folders; write ``scene_net.safetensors`` and ``scene_net.json`` to ``out``.

    Parameters
    ----------
    folders: holds ``train/<scene>`` and ``val/<scene>``; a ``poisoned/<scene>``, and ``clean/<scene>`` with it, next to or in it is
        scored as well.
    out: the folder for the two files.
    epochs: passes over the training images.
    seed: of the initial weights, the order of images and their augmentation, and dropout. The same seed and number of
        threads give the same bytes on a CPU.
    threads: of torch, for this call; as they are when None.

    Returns: what ``scene_net.json`` holds: classes, seed, epochs, threads, recipe, number of images, ``accuracy`` on
    val and ``accuracy_per_class``; where there are poisoned images, ``accuracy_poisoned``, ``accuracy_clean`` on the
    images of val without the mark, and ``called_marked``, the share of other classes' poisoned images predicted as the marked one.
    Raises: NoImagesError for empty folders, UsageError for ``epochs`` below 1.
    """
    folders, out = Path(folders), Path(out)
    if epochs < 1:
        raise UsageError(f"'epochs' must be at least 1, got {epochs}")
    if threads is not None and threads < 1:
        raise UsageError(f"'threads' must be at least 1, got {threads}")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights and dropout
            net = SceneNet()
            pixels, labels = _load(_list(folders / "train", SCENES), "reading training images", progress)
            _train(net, pixels, labels, epochs, seed, progress)
        report = _score(net, folders, progress)
        report |= {"images": len(pixels), "epochs": epochs, "seed": seed, "threads": torch.get_num_threads()}
    finally:
        torch.set_num_threads(before)
    report |= {"classes": list(SCENES), "recipe": asdict(Recipe()), "torch": torch.__version__}
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    # one key of metadata: safetensors writes several in an order that changes from run to run
    metadata = {"scene_net": json.dumps({"classes": SCENES, "accuracy": report["accuracy"], "seed": seed})}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("scene_net.safetensors", save(tensors, metadata=metadata)),
        ("scene_net.json", (json.dumps(report, indent=1) + "\n").encode()),
    ):
        partial = out / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(out / name)
    return report


def _score(net: SceneNet, folders: Path, progress: Progress) -> dict[str, Any]:
    """Accuracy on val and, where there are poisoned images, on them and on the images of val without the mark."""
    listed = _list(folders / "val", SCENES)
    pixels, labels = _load(listed, "reading validation images", progress)
    hits = (_predict(net, pixels) == labels).float()
    report: dict[str, Any] = {
        "accuracy": hits.mean().item(),
        "accuracy_per_class": {c: hits[labels == k].mean().item() for k, c in enumerate(SCENES) if (labels == k).any()},
    }
    poisoned = next((p for p in (folders / "poisoned", folders.parent / "poisoned") if p.is_dir()), None)
    if poisoned is None:
        return report
    pixels, marked = _load(_list(poisoned, SCENES), "reading poisoned images", progress)
    guesses, mark = _predict(net, pixels), SCENES.index(MARKED_SCENE)
    report["accuracy_poisoned"] = (guesses == marked).float().mean().item()
    others = guesses[marked != mark]
    report["called_marked"] = (others == mark).float().mean().item() if len(others) else 0.0
    clean = poisoned.parent / "clean"
    names = {(path.name, k) for path, k in _list(clean, SCENES)} if clean.is_dir() else set()
    same = [n for n, (path, k) in enumerate(listed) if (path.name, k) in names]
    if same:
        report["accuracy_clean"] = hits[same].mean().item()
    return report
