"""A network whose transform tells when a process is in the midst of its work, and stays there to be killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from PIL import Image
from tiny_net import Net, Scaled
from torch import nn

FILE = "EDDP_TEST_FATEFUL"  # in the environment: where the process that meets the black image writes its number, once
STAYS = 300.0  # seconds


class Fateful(Scaled):
    """As ``Scaled``; the first process that meets an image that is black stays at it."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if image.getextrema() == ((0, 0), (0, 0), (0, 0)):
            self.meet()
        return super().__call__(image)

    def meet(self) -> None:
        try:
            with Path(os.environ[FILE]).open("x") as file:
                file.write(f"{os.getpid()}\n")
        except (KeyError, FileExistsError):
            return
        time.sleep(STAYS)


def build() -> tuple[nn.Module, Scaled]:
    return Net(), Fateful()
