"""Spectra of real pictures: what their entries stand for, how they fall off, and what makes phases those of a picture."""

from __future__ import annotations

import torch


def frequencies(height: int, width: int) -> torch.Tensor:
    """Length of the frequency, in cycles a pixel, of each entry of a real picture's spectrum: (h, w // 2 + 1) float32."""
    down = torch.fft.fftfreq(height)[:, None]
    across = torch.fft.rfftfreq(width)[None, :]
    return (down**2 + across**2).sqrt()


def falling(height: int, width: int) -> torch.Tensor:
    """Magnitudes (h, w // 2 + 1) that fall as 1/f, as natural images' do (Olah et al. 2017; Field 1987).

    Scaled so that a plane with coefficients of unit mean square times these has unit mean square (``to_planes``). The
    lowest frequency stands for the mean as well, which has none of its own.
    """
    f = frequencies(height, width)
    scale = 1 / f.clamp(min=1 / max(height, width))
    return scale / ((scale**2 * _twins(width)).sum() / (height * width)).sqrt()


def to_planes(spectrum: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Spectra (..., h, w // 2 + 1) complex -> real planes (..., h, w), by the orthonormal transform (it keeps mean squares)."""
    return torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")


def odd(phase: torch.Tensor, width: int) -> torch.Tensor:
    """Phases (..., h, w // 2 + 1) made those of a real picture's spectrum.

    In the columns of frequency 0 and of the highest one, if ``width`` is even, both φ(f) and φ(−f) are stored and must be
    opposite; only then does the inverse transform keep the magnitudes. Everywhere else the twin is implied.
    """
    own = torch.zeros(phase.shape[-1], dtype=torch.bool, device=phase.device)
    own[0] = True
    own[-1] |= width % 2 == 0
    twin = phase.flip(-2).roll(1, -2)  # row k -> row -k modulo h
    return torch.where(own, (phase - twin) / 2, phase)


def _twins(width: int) -> torch.Tensor:
    """How many coefficients of the full spectrum each stored one stands for, (w // 2 + 1,): itself and its twin, or only itself."""
    counts = torch.full((width // 2 + 1,), 2.0)
    counts[0] = 1
    if width % 2 == 0:
        counts[-1] = 1
    return counts
