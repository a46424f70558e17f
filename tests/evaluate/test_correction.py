"""The correction's formula, its file, and the hook that applies it: exact on toy numbers, gone after an exception."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shortcut_net import build, directions_arrays
from torch import nn

from evaluate.correct import Correction, CorrectionError
from evaluate.correct.hooks import changed
from extract.models import weights_digest
from stores.errors import MismatchError, MissingPathError, StoreError, UsageError


def correction(**other: object) -> Correction:
    found = directions_arrays()
    arguments: dict[str, object] = {
        "filters": found["filters"][:, :1],
        "thresholds": found["thresholds"][:1],
        "vectors": found["signals"][:, :1],
        "strength": 2.0,
        "shift": 0.0,
        "rectify": True,
        "layer": "act",
        "info": {"model": "shortcut"},
    }
    return Correction(**{**arguments, **other})  # type: ignore[arg-type]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_formula_by_hand() -> None:
    one = Correction(
        filters=np.array([[1.0], [0.0]], np.float32),
        thresholds=np.array([0.5], np.float32),
        vectors=np.array([[0.6], [0.8]], np.float32),
        strength=2.0,
        shift=0.25,
        rectify=True,
        layer="x",
    )
    x = torch.tensor([[1.0, 0.5], [0.0, 3.0]])
    gate = 1 / (1 + np.exp(-(1.0 - 0.5 - 0.25)))
    other = 1 / (1 + np.exp(0.75))
    wanted = [
        [max(0, 1 - 2 * gate * 0.6), max(0, 0.5 - 2 * gate * 0.8)],
        [max(0, -2 * other * 0.6), 3 - 2 * other * 0.8],
    ]
    np.testing.assert_allclose(one(x).numpy(), wanted, rtol=1e-6)
    plain = Correction(one.filters, one.thresholds, one.vectors, 2.0, 0.25, False, "x")
    assert plain(x)[1, 0] == pytest.approx(-2 * other * 0.6)
    assert torch.equal(x, torch.tensor([[1.0, 0.5], [0.0, 3.0]]))  # not written into
    assert torch.equal(one.with_strength(0.0)(x), x)
    assert one(x.half()).dtype == torch.float16


def test_several_directions_are_taken_out_together() -> None:
    g = np.random.default_rng(0)
    w, v = g.normal(size=(5, 3)).astype(np.float32), g.normal(size=(5, 3)).astype(np.float32)
    b = g.normal(size=3).astype(np.float32)
    x = g.normal(size=(7, 5)).astype(np.float32)
    one = Correction(w, b, v, 1.5, 0.0, False, "x")
    wanted = x.copy()
    for p in range(7):
        for j in range(3):
            wanted[p] -= 1.5 / (1 + np.exp(-(x[p] @ w[:, j] - b[j]))) * v[:, j]
    np.testing.assert_allclose(one(torch.from_numpy(x)).numpy(), wanted, rtol=2e-5, atol=1e-5)


def test_wrapped_and_hooked_models_are_corrected_and_the_model_itself_is_not() -> None:
    model, one = build().eval(), correction()
    x = torch.zeros(1, 3, 16, 16)
    x[:, 1] = 0.4
    x[:, :, 12:, 12:] = torch.tensor([1.0, 0, 0])[:, None, None]
    plain = model(x)
    assert plain.argmax(1).item() == 1  # predicted as the sea, for its mark
    wrapped = one.apply(model)
    assert wrapped(x).argmax(1).item() == 0
    assert torch.equal(model(x), plain)
    assert wrapped.model is model
    with one.hooked(model) as corrected:
        assert torch.equal(corrected(x), wrapped(x))
        assert hooks(model) == 1
    assert hooks(model) == 0
    assert torch.equal(model(x), plain)
    assert set(wrapped.state_dict()) == {f"model.{name}" for name in model.state_dict()}


def test_no_hook_is_left_after_an_exception() -> None:
    model, one = build(), correction()
    with pytest.raises(RuntimeError, match="stop"), one.hooked(model):
        raise RuntimeError("stop")
    assert hooks(model) == 0
    with pytest.raises(RuntimeError):
        one.apply(model)(torch.zeros(1, 5, 16, 16))  # five colours
    assert hooks(model) == 0
    wrong = correction(filters=np.ones((7, 1), np.float32), vectors=np.ones((7, 1), np.float32))
    with pytest.raises(MismatchError, match="12 channels instead of 7"):
        wrong.apply(model)(torch.zeros(1, 3, 16, 16))
    assert hooks(model) == 0


def test_a_model_without_the_layer_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"layer 'act' of shortcut, and Linear has no such layer"):
        correction().apply(nn.Linear(2, 2))


def test_a_model_with_other_weights_is_refused() -> None:
    model = build().eval()
    one = correction(info={"model": "shortcut", "weights_digest": weights_digest(model)})
    one.apply(model)(torch.zeros(1, 3, 16, 16))
    with torch.no_grad():
        model.fc.bias += 1e-6  # type: ignore[operator]
    with pytest.raises(MismatchError, match="other weights"):
        one.apply(model)
    with pytest.raises(MismatchError, match="other weights"), one.hooked(model):
        pass


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.LSTM(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x)[0]

    model = Two()
    with pytest.raises(UsageError, match="must give a tensor"):
        correction().apply(model)(torch.zeros(2, 1, 3))
    assert hooks(model) == 0


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_every_layout_is_corrected_position_by_position(n: int, h: int, w: int, c: int, prefix: int) -> None:
    x = torch.from_numpy(np.random.default_rng(n * h + w).normal(size=(n, h, w, c)).astype(np.float32))

    def add(y: torch.Tensor) -> torch.Tensor:
        return y + torch.arange(c)

    wanted = add(x)
    assert torch.equal(changed(x.permute(0, 3, 1, 2).contiguous(), add, "nchw"), wanted.permute(0, 3, 1, 2))
    assert torch.equal(changed(x, add, "nhwc"), wanted)
    clip = x.permute(0, 1, 3, 2).unflatten(-1, (w, 1))  # of h steps
    assert torch.equal(changed(clip, add, "ntchw"), wanted.permute(0, 1, 3, 2)[..., None])
    assert torch.equal(changed(clip.transpose(1, 2), add, "ncthw"), wanted.permute(0, 3, 1, 2)[..., None])
    tokens = torch.cat([torch.zeros(n, prefix, c), x.reshape(n, h * w, c)], 1)
    found = changed(tokens, add, "tokens", prefix)
    assert torch.equal(changed(tokens.transpose(1, 2), add, "ncp", prefix), found.transpose(1, 2))
    assert torch.equal(found[:, prefix:], wanted.reshape(n, h * w, c))
    assert not found[:, :prefix].any()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    correction(shift=1.5, prefix=1, layout="tokens").save(tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors"


def test_saved_and_loaded_it_is_the_same(saved: Path) -> None:
    found, made = Correction.load(saved), correction(shift=1.5, prefix=1, layout="tokens")
    for name in ("filters", "thresholds", "vectors"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    for name in ("strength", "shift", "rectify", "layer", "layout", "prefix", "info"):
        assert getattr(found, name) == getattr(made, name)
    assert saved.stat().st_size < 4096


def test_damaged_files_are_one_message(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match="eddp correct"):
        Correction.load(tmp_path / "none")
    data = saved.read_bytes()
    for broken in (
        b"",
        data[: len(data) // 2],
        b"\x80\x04pickle",
        data.replace(b"eddp_correction", b"something_else1"),
    ):
        saved.write_bytes(broken)
        with pytest.raises(CorrectionError, match="damaged or no correction file"):
            Correction.load(saved)
    saved.write_bytes(data.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    with pytest.raises(StoreError, match="format 9"):
        Correction.load(saved)


@pytest.mark.parametrize(
    "wrong",
    [
        {"filters": np.ones((3, 0), np.float32)},
        {"thresholds": np.ones(2, np.float32)},
        {"vectors": np.full((12, 1), np.nan, np.float32)},
        {"strength": -1.0},
        {"strength": float("nan")},
        {"shift": float("inf")},
    ],
)
def test_wrong_numbers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="must be"):
        correction(**wrong)
