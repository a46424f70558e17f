"""Pictures by their spectra: steps along frequencies and decorrelated colours, not along pixels, make no noise.

Both parametrisations end alike: three uncorrelated planes, mixed to colours as natural images mix them, then squeezed
into [0, 1] by the logistic function. They differ in what of the planes' spectra is free: all of it, or only its phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from evaluate.visualize.natural import Natural
from evaluate.visualize.spectra import falling, odd, to_planes

Parametrisation = Literal["fourier", "magnitude"]
START = 0.01  # standard deviation of the first planes: nearly flat, so that the direction and not the start decides
CONTRAST = 1.0  # largest root mean square of the planes: that of natural images


class Pictures:
    """n pictures given by their spectra.

    Parameters
    ----------
    kind : "fourier": all coefficients are free, scaled by 1/f (Olah et al. 2017); "magnitude": the phases are free, the
        magnitudes are those of natural images (MACO, Fel et al. 2023, eq. 4).
    generators : one a picture; what it draws for a picture does not depend on the others.
    natural : mean, mixing of colours and magnitudes of natural images, for pictures of its size.
    device : of everything.

    Attributes
    ----------
    free : tensor that requires gradients, first dimension n: (n, 3, h, w // 2 + 1, 2) or (n, 3, h, w // 2 + 1).
    """

    def __init__(
        self, kind: Parametrisation, generators: Sequence[torch.Generator], natural: Natural, device: torch.device
    ) -> None:
        self.kind = kind
        self.height, self.width = natural.size
        shape = (3, self.height, self.width // 2 + 1)
        if kind == "fourier":
            start = [START * torch.randn(*shape, 2, generator=g) for g in generators]
            self._scale = falling(self.height, self.width).to(device) / 2**0.5  # two normal numbers a coefficient
        else:
            start = [2 * torch.pi * torch.rand(*shape, generator=g) for g in generators]
            self._scale = natural.magnitude.to(device)
        self.free = torch.stack(start).to(device).requires_grad_()
        self._mean, self._mix = natural.mean.to(device), natural.mix.to(device)

    def spectrum(self) -> torch.Tensor:
        """Spectra of the three uncorrelated planes, (n, 3, h, w // 2 + 1) complex64."""
        if self.kind == "fourier":
            return torch.view_as_complex(self.free) * self._scale
        return torch.polar(self._scale.expand(self.free.shape), odd(self.free, self.width))

    def planes(self) -> torch.Tensor:
        """The three uncorrelated planes (n, 3, h, w); where their contrast is free, it is no larger than natural images'."""
        planes = to_planes(self.spectrum(), self.height, self.width)
        return calmed(planes) if self.kind == "fourier" else planes

    def rgb(self) -> torch.Tensor:
        """The pictures (n, 3, h, w), RGB in (0, 1), differentiable in ``free``."""
        planes = self.planes()
        return torch.sigmoid(torch.nn.functional.conv2d(planes, self._mix[:, :, None, None], self._mean))


def calmed(planes: torch.Tensor) -> torch.Tensor:
    """Planes (n, 3, h, w) whose root mean square is at most ``CONTRAST``, each picture scaled down uniformly where it is larger.

    Without a bound the response grows for ever with contrast and saturated colours, and no number of steps is enough [ours].
    """
    rms = planes.square().mean((1, 2, 3), keepdim=True).sqrt()
    return planes * (CONTRAST / rms.clamp(min=CONTRAST))
