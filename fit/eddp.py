"""EDDP: encoding-decoding direction pairs, in the paper's order (arXiv 2509.23926), by our fast steps.

1. whiten the activations; 2. cluster their directions (spherical k-means); 3. thresholds and margins from the
clusters, of several starts the one that the losses prefer; 4. refine filters, thresholds and margins on the paper's
losses, re-estimating the signal vectors at every step; 5. carry both directions back to activation space.

The steps as published are in ``fit.paper``.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch

from extract.network import Head
from fit.base import Fitted, Fitter
from fit.checkpoint import Checkpoint
from fit.clustering import kmeans_engine
from fit.config import BRIEF, PARTIAL, EDDPConfig
from fit.detectors import in_activation_space
from fit.diagnostics import diagnose
from fit.init import find_start
from fit.losses import OTHER_TILES, RowWeights, longest_tile, streamed_sums
from fit.refine import refine
from fit.row_sources import Stored, positions
from fit.signals import moments_of
from fit.uncertainty import Uncertainty, usable_head
from fit.whiten import rank_by_gap, whiten_store, whitening_of_rank_0
from stores.progress import Progress
from stores.readers import LayerReader
from stores.statistics import statistics


class EDDP(Fitter[EDDPConfig]):
    """Finds I direction pairs in a layer. See ``EDDPConfig`` for the settings."""

    name: ClassVar[str] = "eddp"
    configuration: ClassVar[type[EDDPConfig]] = EDDPConfig
    uses_head: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    spreads: ClassVar[bool] = True

    def find(self, reader: LayerReader, head: Head | None, progress: Progress, checkpoint: Checkpoint) -> Fitted:
        """Fit on the positions of a layer; ``head`` adds uncertainty region alignment.

        Raises FitError when the activations do not vary or have too few directions, NonFiniteError for NaN.
        """
        config, ranks, device = self.config, self.ranks, torch.device(self.config.device)
        state = checkpoint.load()
        # 1. whitened coordinates
        moments = statistics(reader, device=config.device, progress=progress, ranks=ranks)
        # rank 0 decides for all: LAPACKs of two machines round differently
        found = {"gap": torch.tensor(rank_by_gap(moments, config.n_directions) or 0)} if ranks.rank == 0 else None
        gap = int(ranks.share(found)["gap"]) or None
        rank = config.rank or gap or max(64, config.n_directions)
        transform = whitening_of_rank_0(moments, ranks, rank=rank, shrinkage=config.shrinkage, whiten=config.whiten)
        transform = transform.to(config.device)
        sample = max(config.restart_rows, config.n_directions * config.kmeans_points)
        data = whiten_store(
            reader,
            transform,
            config,
            max_rows=config.max_rows if config.rows == "memory" else sample,
            pooled=head is not None and bool(head.affine),
            progress=progress,
            ranks=ranks,
            longest=longest_tile(transform.rank, device),
        )
        in_memory = positions(data)
        # 2. directions, 3. thresholds and margins
        start = None
        with checkpoint.resuming(state):
            soft = bool(state.values["soft"]) if state else config.regime == "soft"
        if state is None and config.regime == "auto":
            start = find_start(in_memory, config, progress, several=gap is None)
            soft = start.soft
        # in front of a gap every axis is signal; without one those of little variance hold noise, which whitening would blow up
        partial = soft and gap is None
        power = config.power if config.power is not None else PARTIAL["power"] if partial else 1.0
        if soft and power < 1:
            transform, factors = transform.with_power(power)
            data.rows.mul_(factors)
            data.pooled.mul_(factors)
            config, start = replace(config, restarts=1), None
        if state is None and start is None:
            start = find_start(in_memory, replace(config, regime="soft" if soft else "sharp"), progress)
        rows = in_memory if config.rows == "memory" else Stored(reader, transform, config.device, ranks)
        regime = config.regime_settings(soft, partial)
        # 4. refinement
        uncertainty = None
        head = usable_head(reader.spec, head) if config.lambda_uncertainty and config.refine_steps else None
        if head is not None:
            uncertainty = Uncertainty(
                transform,
                data,
                reader,
                head,
                config.seed,
                step=config.uncertainty_step,
                objective=config.uncertainty_objective,
                ridge=config.uncertainty_ridge,
                images=config.uncertainty_images,
            )
        refined = refine(
            rows,
            start.detectors if start else None,
            config,
            regime,
            moments_of(rows),
            uncertainty,
            progress,
            checkpoint,
            state,
            {"soft": soft},
        )
        # 5. back to activation space
        filters, thresholds = refined.detectors.linear()
        return self.fitted(
            reader,
            *in_activation_space(transform, refined.detectors, refined.signals),
            mean=moments.mean,
            log=refined.log,
            rank=transform.rank,
            power=power if soft else 1.0,
            **asdict(regime),
            variance_kept=round(transform.kept, 6),
            positions=rows.count,
            engine=kmeans_engine(self.config.device),
            uncertainty=uncertainty.kind if uncertainty else "none",
            regime="soft" if soft else "sharp",
            steps=len(refined.log),
            reseeded=refined.reseeded,
            diagnosis=diagnose(rows, filters.detach(), thresholds.detach(), refined.signals),
        )

    def row_loss(self, reader: LayerReader) -> float:
        """``λ_s L_s + λ_ma L_ma`` over all positions of a reader."""
        found, total = self.directions_, 0.0
        assert found.thresholds is not None
        filters, thresholds = (torch.from_numpy(a).to(self.config.device) for a in (found.filters, found.thresholds))
        weights = RowWeights(self.config.lambda_s, found.info["lambda_ma"])
        for _, block in reader.blocks(images=max(1, OTHER_TILES // reader.positions)):
            if len(block):
                x = torch.from_numpy(block).to(self.config.device).float().reshape(-1, reader.channels)
                sums = streamed_sums(x, filters, thresholds, weights, signals="none")
                total += len(x) * (
                    weights.sparsity * sums.sparsity + weights.maximum_activation * sums.maximum_activation
                )
        return total / reader.n_rows

    def brief(self, seed: int) -> EDDP:
        """From one start, on few positions; in the regime and the coordinates that this fit found, once it is done."""
        config = self.config
        found = self.directions_.info if hasattr(self, "_fitted") else {}
        decided = {name: found[name] for name in ("regime", "rank", "power", "direction_rate") if name in found}
        steps = min(config.refine_steps, BRIEF["refine_steps"])
        few: dict[str, Any] = {"restarts": 1, "refine_steps": steps, "max_rows": BRIEF["max_rows"], "rows": "memory"}
        return EDDP(replace(config, seed=seed, refits=0, **few, **decided))
