"""Manipulations and the uncertainty loss against their definitions, and the pooled shortcut against the general path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.network import Head, open_head
from fit.config import EDDPConfig, FitterConfig
from fit.eddp import EDDP
from fit.init import from_clusters
from fit.uncertainty import Uncertainty, constrained_step, uncertainty_loss, unconstrained_step
from fit.whiten import whiten_store, whitening
from stores.errors import OutOfMemoryError
from stores.readers import LayerReader
from stores.statistics import statistics


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_printed_forms(r: int, i: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w, s = (torch.randn(r, i, generator=g, dtype=torch.float64) for _ in range(2))
    z = torch.randn(7, i, generator=g, dtype=torch.float64)
    gram = w.T @ s
    wanted = torch.stack([s @ torch.linalg.pinv(gram) @ row for row in z])
    torch.testing.assert_close(constrained_step(z, w, s, 0.0), wanted)
    wanted = torch.stack([torch.linalg.pinv(w.T) @ row for row in z])
    torch.testing.assert_close(unconstrained_step(z, w), wanted)
    ridge = torch.stack([s @ torch.linalg.inv(gram.T @ gram + 0.3 * torch.eye(i)) @ gram.T @ row for row in z])
    torch.testing.assert_close(constrained_step(z, w, s, 0.3), ridge)


def test_the_step_removes_exactly_what_the_detectors_see() -> None:
    g = torch.Generator().manual_seed(1)
    w, s = (torch.randn(6, 3, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.randn(5, 6, generator=g, dtype=torch.float64)
    b = torch.randn(3, generator=g, dtype=torch.float64)
    z = y @ w - b
    torch.testing.assert_close((y - constrained_step(z, w, s, 0.0)) @ w - b, torch.zeros(5, 3, dtype=torch.float64))
    torch.testing.assert_close((y - unconstrained_step(z, w)) @ w - b, torch.zeros(5, 3, dtype=torch.float64))


def test_loss_by_hand() -> None:
    even = torch.zeros(2, 4)
    assert float(uncertainty_loss(even, "kl")) == pytest.approx(0, abs=1e-6)
    assert float(uncertainty_loss(even, "entropy")) == pytest.approx(-2)  # four classes: two bits
    p = torch.tensor([[0.5, 0.25, 0.25]])
    assert float(uncertainty_loss(p.log(), "entropy")) == pytest.approx(-1.5)
    wanted = -math.log2(3) - (math.log2(0.5) + 2 * math.log2(0.25)) / 3
    assert float(uncertainty_loss(p.log(), "kl")) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("step", ["constrained", "unconstrained"])
def test_pooled_shortcut_equals_the_general_path(reader: LayerReader, step: str) -> None:
    head = open_head(reader.store, reader.spec.name)
    transform = whitening(statistics(reader), rank=64)
    data = whiten_store(reader, transform, FitterConfig(), max_rows=10**6)
    detectors = from_clusters(data.rows, EDDPConfig(n_directions=3), 0)
    for tensor in detectors.parameters():
        tensor.requires_grad_(True)
    signals = torch.randn(transform.rank, 3, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, used in (("pooled", head), ("general", Head(head.function, None))):
        term = Uncertainty(transform, data, reader, used, 0, step=step, images=64)  # type: ignore[arg-type]
        loss, entropy = term(detectors.unit(), detectors.offsets, signals)
        found[name] = (
            float(loss.detach()),
            entropy,
            torch.autograd.grad(loss, detectors.parameters(), allow_unused=True),
        )
    assert found["pooled"][0] == pytest.approx(found["general"][0], rel=1e-4)
    assert found["pooled"][1] == pytest.approx(found["general"][1], rel=1e-4)
    for a, b in zip(found["pooled"][2][:2], found["general"][2][:2], strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-3, atol=1e-4 * float(b.abs().max()))


def test_a_head_that_needs_more_memory_than_there_is(reader: LayerReader) -> None:
    def exhausted(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with pytest.raises(
        OutOfMemoryError, match=r"16 images at once .* after layer 'synthetic': use --set uncertainty_images=8"
    ):
        EDDP(n_directions=3, refine_steps=2, restarts=1, restart_steps=2).fit(reader, Head(exhausted, None))

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        EDDP(n_directions=3, refine_steps=2, restarts=1, restart_steps=2).fit(reader, Head(broken, None))
