"""EDDP in its published steps (arXiv 2509.23926, §3.4), and UIBE and CBE, which are its first one.

(a) orthonormal filters in standardised space, one margin and one threshold; (b) the same detectors in activation space,
each on its own; (c) signal vectors from the filters; (d) filters and signal vectors jointly.

Our own steps, faster and better at recovering what is known to be there (BENCHMARKS.md), are ``fit.eddp``.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import ClassVar, TypeVar

from extract.network import Head
from fit.base import Fitted, Fitter, provenance
from fit.checkpoint import Checkpoint
from fit.detectors import in_activation_space
from fit.diagnostics import diagnose
from fit.paper.config import CBEConfig, PaperConfig, UIBEConfig
from fit.paper.stages import Stages
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import statistics

log = logging.getLogger(__name__)
Config = TypeVar("Config", bound=UIBEConfig)


class _Published(Fitter[Config]):
    """What the three have in common: they go through ``stages`` in order, and end in activation space."""

    resumes: ClassVar[bool] = True
    spreads: ClassVar[bool] = True
    stages: ClassVar[tuple[str, ...]] = ("a",)

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Fit on the positions of a layer; ``head`` is for uncertainty region alignment.

        Raises FitError when the activations do not vary, or when there are more directions than channels that do.
        """
        facts = provenance(reader, self.config)
        state = checkpoint.load({"method": self.name, "layer": reader.spec.name, "head": head is not None,
                                 "store": reader.identity, "config": facts["config"]})  # fmt: skip
        moments = statistics(reader, device=self.config.device, progress=progress, ranks=self.ranks)
        fit = Stages(
            self.config, self.stages, reader, self._usable(reader, head), moments, progress, checkpoint, self.ranks
        )
        model, signals, rows = fit.run(state)
        directions = in_activation_space(reader, fit.activations, model.detectors(), signals, self.name)
        filters, thresholds = model.linear()
        info = {
            **facts,
            "in_force": asdict(self.config.in_force),
            "channels_used": fit.standard.rank,
            "positions": rows.count,
            "uncertainty": fit.kind,
            "steps": len(fit.log),
            "epochs": fit.epochs,
            "diagnosis": diagnose(rows, filters.detach(), thresholds.detach(), signals),
        }
        return Fitted(replace(directions, mean=moments.mean.astype("float32"), info=info), fit.log)

    def _usable(self, reader: LayerReader, head: Head | None) -> Head | None:
        if not isinstance(self.config, CBEConfig):
            return None
        if head is not None and (reader.spec.sampled or reader.spec.prefix):
            log.warning("uncertainty region alignment is left out: it needs every position of the layer")
            return None
        return head


class UIBE(_Published[UIBEConfig]):
    """Unsupervised interpretable basis extraction (arXiv 2303.10523): step (a) on the clustering losses alone.

    UIBE knows no signal vectors: they are estimated from its filters, as in step (c).
    """

    name: ClassVar[str] = "uibe"
    configuration: ClassVar[type[UIBEConfig]] = UIBEConfig


class CBE(_Published[CBEConfig]):
    """Concept basis extraction (Doumanoglou et al., VISAPP 2024): step (a), with directions that the predictions depend on.

    CBE's own classification loss enforces directions of maximal influence on the predictions. Its exact formula is not
    known to us; in its place stands uncertainty region alignment (L_uur), the same authors' successor of it [I].
    Signal vectors are estimated from the filters, as in step (c).
    """

    name: ClassVar[str] = "cbe"
    configuration: ClassVar[type[CBEConfig]] = CBEConfig
    uses_head: ClassVar[bool] = True


class PaperEDDP(_Published[PaperConfig]):
    """EDDP by its published steps (a) to (d). See ``PaperConfig`` for the settings."""

    name: ClassVar[str] = "eddp-paper"
    configuration: ClassVar[type[PaperConfig]] = PaperConfig
    uses_head: ClassVar[bool] = True
    stages: ClassVar[tuple[str, ...]] = ("a", "b", "d")
