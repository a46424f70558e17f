"""Clips of squares and crosses that move in three ways, whose single frames show no motion, and a small network that knows both."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.helpers.video_clips import write_clip

MOTIONS = {"down": (0, 2), "left": (-2, 0), "right": (2, 0)}
OBJECTS = ("square", "cross")
CLASSES = [f"{motion} {thing}" for motion in MOTIONS for thing in OBJECTS]
FRAMES, SIDE, RATE = 8, 32, 24.0


class MotionNet(nn.Module):
    """Two layers of 3-D convolutions, pooling, a linear map; clips of 8 frames of 32 × 32 pixels."""

    clip_frames, clip_rate, input_size = FRAMES, RATE, (SIDE, SIDE)
    class_names = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv3d(3, 12, (3, 5, 5), (1, 2, 2), (1, 2, 2)), nn.BatchNorm3d(12), nn.ReLU())
        self.late = nn.Sequential(nn.Conv3d(12, 24, 3, (2, 2, 2), 1), nn.BatchNorm3d(24), nn.ReLU())
        self.fc = nn.Linear(24, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.late(self.early(x)).mean((2, 3, 4)))


def draw(motion: str, thing: str, seed: int) -> np.ndarray:
    """(T, h, w, 3) uint8: a white thing that moves over a grey ground from a random place, round the edges."""
    g = np.random.default_rng(seed)
    frames = np.full((FRAMES, SIDE, SIDE, 3), g.integers(40, 90), np.uint8)
    stamp = np.ones((7, 7), bool)
    if thing == "cross":
        stamp[[0, 0, -1, -1], [0, -1, 0, -1]] = stamp[:2, :2] = stamp[:2, -2:] = stamp[-2:, :2] = stamp[-2:, -2:] = (
            False
        )
    (dx, dy), x, y = MOTIONS[motion], *g.integers(0, SIDE, 2)
    rows, columns = np.nonzero(stamp)
    for t in range(FRAMES):
        frames[t, (rows + y + dy * t) % SIDE, (columns + x + dx * t) % SIDE] = 230
    return frames


def write_dataset(root: Path, per: int) -> Path:
    """A concept dataset of such clips in Broden's format: the motion (``action``) and the thing (``object``) of each."""
    (root / "images").mkdir(parents=True)
    names = [*MOTIONS, *OBJECTS]
    with (root / "label.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", "name", "category"])
        for k, name in enumerate(names, 1):
            table.writerow([k, name, f"{'action' if name in MOTIONS else 'object'}(1)"])
    with (root / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "split", "ih", "iw", "sh", "sw", "action", "object"])
        for k in range(per):
            for motion in MOTIONS:
                for thing in OBJECTS:
                    name = f"{motion}_{thing}_{k}.mkv"
                    write_clip(root / "images" / name, list(draw(motion, thing, k)))
                    split = "train" if k % 2 else "val"
                    numbers = [names.index(motion) + 1, names.index(thing) + 1]
                    table.writerow([name, split, SIDE, SIDE, SIDE, SIDE, *numbers])
    return root


def train(file: Path, steps: int = 250) -> float:
    """Train the network on clips of its own, and save its weights; returns its accuracy on others."""
    torch.manual_seed(0)
    network = MotionNet()
    optimiser = torch.optim.AdamW(network.parameters(), 5e-3)

    def batch(first: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(n) % len(CLASSES)
        clips = np.stack([draw(*CLASSES[int(k)].split(), first + j) for j, k in enumerate(labels)])
        x = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 255
        mean, deviation = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return (x - mean) / deviation, labels

    for step in range(steps):
        x, labels = batch(10_000 + 48 * step, 48)
        loss = nn.functional.cross_entropy(network.train()(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, labels = batch(5_000, 120)
    torch.save(network.state_dict(), file)
    with torch.no_grad():
        return float((network.eval()(x).argmax(1) == labels).float().mean())


def motion_net() -> nn.Module:
    return MotionNet()
