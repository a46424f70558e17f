"""The published steps: gradients of whole steps, orthonormality, the change of variables, the schedule, going on."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.ground_truth import against_truth
from extract.network import Head
from fit import make_fitter
from fit.checkpoint import Checkpoint
from fit.config import FitterConfig, with_settings
from fit.paper import CBE, UIBE, PaperConfig, PaperEDDP, StepSettings
from fit.paper.config import PRESETS
from fit.paper.coordinates import Learnt, Orthonormal, Separate, cayley, plain, released, standardised
from fit.paper.step import CONSTRAINED, LearningStep, Multipliers
from fit.row_sources import Batches
from fit.uncertainty import Uncertainty
from fit.whiten import whiten_store
from pipeline.commands.fit import fit as command
from pipeline.options import run_command
from stores.attachments import read_truth
from stores.errors import FitError, MismatchError, NonFiniteError, UnknownNameError, UsageError
from stores.readers import LayerReader, Part
from stores.statistics import Statistics, statistics
from tests.helpers.keeping import resumed, same
from tests.helpers.naive import naive_losses, naive_orthogonality

D = torch.float64
BOUNDS = {"maximum_activation": 0.8, "margin": 0.5, "inactive": 0.1, "excessive": 0.1, "orthogonality": 0.1}
QUICK = {name: StepSettings(epochs=3) for name in ("a", "b", "d")}


def mean_pull(filters: torch.Tensor, thresholds: torch.Tensor, signals: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Stands for the uncertainty term: any function of filters, thresholds and signal vectors."""
    value = (filters * torch.arange(1.0, 1 + len(filters))[:, None]).sum().sin()
    return value + thresholds.square().mean() + signals.square().sum().cos(), 0.0


def learning(
    name: str, r: int, i: int, n: int, seed: int, *, lagrangian: bool, aligned: bool = True
) -> tuple[LearningStep, torch.Tensor]:
    """A step on n random rows of r numbers, in float64."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=D)

    y = random(n, r)
    model: Learnt
    if name == "a":
        base = torch.linalg.qr(random(r, r))[0]
        model = Orthonormal(random(r, i), random(1) / 4 - 0.3, random(1) / 4, base)
    else:
        model = Separate(random(r, i), random(i) / 4 - 0.3, random(i) / 4, random(r, i) if name == "d" else None)
    rest = (2.6, 15.0, 1.3) if name != "a" else (0.0, 0.0, 0.0)
    how = StepSettings(9, 1e-3, 2, 0.85, 2.8, 0.6, 5.0, 0.25, 0.9, *rest, rho=0.2)
    multipliers = None
    if lagrangian:
        multipliers = Multipliers({loss: BOUNDS[loss] for loss in CONSTRAINED[name]}, 0.7)
        multipliers.values = {loss: 0.3 * k for k, loss in enumerate(multipliers.values)}
    alignment = mean_pull if aligned else None
    return LearningStep(name, model, Batches(y, 0, 0), how, multipliers, alignment), y


def naive_total(step: LearningStep, y: torch.Tensor) -> torch.Tensor:
    """The paper's formulas of a whole step, from the step's own parameters."""
    model, how = step.model, step.how
    if isinstance(model, Orthonormal):
        r, i = model.free.shape
        lower = torch.cat([torch.tril(model.free, -1), torch.zeros(r, r - i, dtype=D)], 1)
        half = (lower - lower.T) / 2
        unit = (model.base @ torch.linalg.inv(torch.eye(r, dtype=D) + half) @ (torch.eye(r, dtype=D) - half))[:, :i]
        margins, s = model.log_margins.exp(), None
        w, b = unit / margins, model.thresholds.repeat(i)
    else:
        unit = model.directions / model.directions.norm(dim=0)
        margins = model.log_margins.exp()
        w, b, s = unit / margins, model.thresholds, model.encoding
    naive = naive_losses(y, w, b, step.gamma, how.tau, how.rho or 1.0)
    if w.shape[1] == 1:
        naive["sb"] = naive["sb"].detach() * 0 + 0 * w.sum()  # one detector: no entropy, and 0 / 0
    losses = {"maximum_activation": (how.lambda_ma, naive["ma"]), "margin": (how.lambda_mm, (1 / margins).mean()),
              "inactive": (how.lambda_ic, naive["ic"])}  # fmt: skip
    if step.name != "a":
        losses["excessive"] = (how.lambda_eac, naive["eac"])
    if s is not None:
        losses["orthogonality"] = (how.lambda_fso, naive_orthogonality(unit, s))
    total = how.lambda_s * naive["s"] + (how.lambda_sb * naive["sb"] if step.name != "a" else 0)

    if step.uncertainty is not None:
        signals = torch.zeros(0, dtype=D) if s is None else s / s.norm(dim=0)
        total = total + how.lambda_uncertainty * mean_pull(w, b, signals)[0]
    for name, (weight, loss) in losses.items():
        if step.multipliers is None:
            total = total + weight * loss
        else:
            m, rho = step.multipliers.values[name], step.multipliers.penalties[name]
            total = total + (torch.relu(m + rho * (loss - BOUNDS[name])) ** 2 - m**2) / (2 * rho)
    return total


shapes = st.tuples(st.integers(2, 6), st.integers(2, 9), st.integers(2, 30), st.integers(0, 10**6))


@pytest.mark.parametrize("lagrangian", [False, True])
@pytest.mark.parametrize("name", ["a", "b", "d"])
@settings(max_examples=15)
@given(shape=shapes)
def test_a_complete_steps_gradient_is_autograds(name: str, lagrangian: bool, shape: tuple[int, int, int, int]) -> None:
    r, i, n, seed = shape
    i = min(i, r) if name == "a" else i  # (b) and (d) with more directions than channels, too
    step, y = learning(name, r, i, n, seed, lagrangian=lagrangian)
    terms = step.gradients(y)
    wanted = naive_total(step, y)
    by = torch.autograd.grad(wanted, step.model.parameters())
    assert terms["total"] == pytest.approx(float(wanted.detach()), rel=1e-6, abs=1e-8)
    for parameter, gradient in zip(step.model.parameters(), by, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-7)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6), st.booleans())
def test_manipulations_are_the_printed_ones(r: int, i: int, seed: int, constrained: bool) -> None:
    step, y = learning("d" if constrained else "b", r, i, 7, seed, lagrangian=False)
    w, b = step.model.linear()
    signals = step.model.signals()
    if signals is None:
        printed = (y @ w - b) @ torch.linalg.pinv(w)
        signals = torch.zeros(0, dtype=D)
    else:
        printed = (y @ w - b) @ torch.linalg.pinv(w.T @ signals).T @ signals.T
    aligned = Uncertainty.__new__(Uncertainty)
    aligned.step, aligned.ridge = "constrained" if constrained else "unconstrained", 0.0
    torch.testing.assert_close(aligned._manipulation(y, *step.model.linear(), signals), printed)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 30), st.integers(0, 10**6))
def test_filters_stay_orthonormal(r: int, i: int, size: float, seed: int) -> None:
    i = min(i, r)
    model = Orthonormal.random(r, i, margin=0.5, tau=0.9, seed=seed)
    g = torch.Generator().manual_seed(seed)
    torch.testing.assert_close(cayley(model.free, model.base), model.base[:, :i])
    model = Orthonormal(size * torch.randn(r, i, generator=g), model.log_margins, model.thresholds, model.base)
    unit = model.unit().detach()
    assert unit.dtype == torch.float32
    assert float((unit.T @ unit - torch.eye(i)).abs().max()) < 1e-5


def test_the_start_lets_pass_a_share_of_normal_values() -> None:
    model = Orthonormal.random(20, 4, margin=0.5, tau=0.9, seed=0)
    y = torch.randn(20000, 20, generator=torch.Generator().manual_seed(0))
    w, b = model.linear()
    share = (y @ w - b > 0).double().mean(0)
    torch.testing.assert_close(share, torch.full((4,), 0.9 / 4, dtype=D), rtol=0.05, atol=0)
    torch.testing.assert_close(model.offsets().expand(4), 0.5 * b)


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 3), st.integers(0, 10**6), st.booleans())
def test_the_change_of_variables_keeps_every_logit(r: int, dead: int, seed: int, centre: bool) -> None:
    g = np.random.default_rng(seed)
    x = g.normal(size=(50, r + dead)) * g.uniform(0.1, 9, r + dead) + 10
    x[:, r:] = 7.0
    standard = standardised(Statistics(x.mean(0), np.cov(x.T, ddof=0).reshape(r + dead, r + dead), 50))
    assert standard.rank == r
    activations = plain(standard, centre=centre)
    i = int(g.integers(1, r + 1))
    before = Orthonormal.random(r, i, margin=0.3, tau=0.9, seed=seed)
    before = Orthonormal(torch.randn(r, i, generator=torch.Generator().manual_seed(seed)).double(),
                         before.log_margins.double(), before.thresholds.double(), before.base)  # fmt: skip
    after = released(before, standard, activations)
    rows = torch.from_numpy(x)

    def logits(model: Learnt, transform: object) -> torch.Tensor:
        w, b = model.linear()
        y = (rows - transform.mean.double()) @ transform.forward.double().T  # type: ignore[attr-defined]
        return (y @ w - b).detach()

    torch.testing.assert_close(logits(after, activations), logits(before, standard), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.unit().norm(dim=0), torch.ones(i, dtype=D))


def test_rates_halve_on_a_plateau_and_the_step_ends() -> None:
    step, _ = learning("b", 4, 3, 20, 0, lagrangian=False, aligned=False)
    step.end = 0.2 * step.how.learning_rate
    for group in step.optimiser.param_groups:
        group["lr"] = 0.0  # nothing changes: the first epoch is the best
    rates = []
    step.optimiser.step = lambda: None  # type: ignore[method-assign,assignment]
    for group in step.optimiser.param_groups:
        group["lr"] = 1e-3
    while not step.finished:
        rates.append(step.learn()["learning_rate"])
    # patience 2: epochs 2, 3, 4 are no better, halved from the 5th; two epochs of cooldown, then three more
    assert rates == [1e-3] * 4 + [5e-4] * 5
    assert step.rate == pytest.approx(2.5e-4) or len(rates) == step.how.epochs


def test_the_presets_are_the_papers_table() -> None:
    config = PaperConfig(n_directions=500)
    a, b, d = (config.in_force.steps[name] for name in ("a", "b", "d"))
    assert (config.in_force.form, config.in_force.batch_rows, config.gamma) == ("weighted", 4096, 1.1)
    assert (a.lambda_s, a.lambda_ma, a.lambda_mm, a.lambda_ic, a.lambda_uncertainty) == (2.6, 2.8, 0.6, 5, 0.25)
    assert (a.epochs, a.learning_rate, a.tau, a.patience, a.rho) == (800, 1e-3, 0.9, 10, None)
    for step in (b, d):
        assert (step.lambda_s, step.lambda_sb, step.lambda_ma, step.lambda_mm) == (0.85, 2.6, 2.8, 0.6)
        assert (step.lambda_ic, step.lambda_uncertainty, step.lambda_eac) == (15, 0.25, 15)
        assert (step.epochs, step.patience) == (2000, 50)
    assert (b.learning_rate, b.tau, b.rho, b.lambda_fso) == (1e-4, 0.9, pytest.approx(12 * 0.9 / 500), 0)
    assert (d.learning_rate, d.tau, d.rho, d.lambda_fso) == (5e-4, 0.2, pytest.approx(70 * 0.2 / 500), 1)
    assert (config.uncertainty_objective, config.uncertainty_ridge) == ("entropy", 0)
    assert PaperConfig(n_directions=3).in_force.steps["b"].rho == 0.9
    chosen = with_settings(config, {"b.lambda_s": "0.9", "d.epochs": "100", "preset": "synthetic", "d.rho": "0.5"})
    assert chosen.in_force.steps["b"].lambda_s == 0.9
    assert chosen.in_force.steps["d"].epochs == 100
    assert chosen.in_force.steps["d"].rho == 0.5
    assert chosen.in_force.steps["a"] == PRESETS["synthetic"].steps["a"]
    assert chosen.in_force.form == "lagrangian"


def test_wrong_settings_are_one_message(reader: LayerReader) -> None:
    with pytest.raises(UsageError, match=r"'learning_rate' of a step must be positive, got -1"):
        StepSettings(learning_rate=-1.0)
    with pytest.raises(UsageError, match="'lambda_s' of a step must not be negative"):
        StepSettings(lambda_s=-0.1)
    with pytest.raises(UsageError, match="'rho' of a step must be between 0 and 1"):
        StepSettings(rho=1.5)
    with pytest.raises(UsageError, match="'bound_mm' of a step must be positive"):
        StepSettings(bound_mm=0.0)
    with pytest.raises(UsageError, match=r"'a.lambda_fso': step \(a\) does not have this loss"):
        PaperConfig(a=StepSettings(lambda_fso=1.0))
    with pytest.raises(UsageError, match="UIBE has no such loss; leave the setting out, or take --method cbe"):
        UIBE(a=StepSettings(lambda_uncertainty=1.0))
    for name, value in (("penalty", 0.0), ("settled", 1.0), ("batch_rows", -1), ("restarts", 0), ("margin", 0.0),
                        ("uncertainty_ridge", -1.0)):  # fmt: skip
        with pytest.raises(UsageError, match=f"'{name}' must"):
            PaperConfig(**{name: value})
    with pytest.raises(UsageError, match="--steps paper is not for 'kmeans'"):
        make_fitter("kmeans", n_directions=3, steps="paper")
    with pytest.raises(UnknownNameError, match=r"b\.lambda_s"):
        make_fitter("eddp", n_directions=3, steps="paper", settings={"lambda": "1"})
    with pytest.raises(FitError, match="has 16, got 17 directions. Ask for --directions 16 or fewer"):
        UIBE(n_directions=17).fit(reader)
    with pytest.raises(NonFiniteError, match=r"--set a.learning_rate="):
        UIBE(n_directions=3, a=StepSettings(learning_rate=1e30, epochs=5)).fit(reader)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"form": "lagrangian", "batch_rows": 0, "restarts": 2, "restart_epochs": 2},
        {"batch_rows": 128, "rows": "store", "uncertainty_ridge": 0.1, "uncertainty_images": 50},
    ],
)
def test_a_killed_fit_resumes_to_the_same_bits(reader: LayerReader, tmp_path: Path, more: dict) -> None:
    settings = {"n_directions": 3, **{name: StepSettings(epochs=6, patience=1) for name in ("a", "b", "d")}, **more}
    whole = PaperEDDP(**settings).fit(reader)
    keep = Checkpoint(tmp_path / "d.checkpoint", minutes=0)
    kills = (("step a", 3), ("step a", 6), ("step b", 1), ("step b", 4), ("step d", 1), ("step d", 5))
    assert same(whole, resumed(lambda: PaperEDDP(**settings), reader, keep.path, kills))
    # its last state is that of step (d)'s last epoch but one
    assert same(whole, PaperEDDP(**settings).fit(reader, checkpoint=keep))
    with pytest.raises(MismatchError, match="config.d.epochs was 6, is 7"):
        PaperEDDP(**{**settings, "d": StepSettings(epochs=7, patience=1)}).fit(reader, checkpoint=keep)


def test_the_log_says_which_step_and_what_of_it(reader: LayerReader) -> None:
    fitted = PaperEDDP(n_directions=3, **QUICK, form="lagrangian").fit(reader)
    assert [row["step"] for row in fitted.log_] == list(range(9))
    assert [row["stage"] for row in fitted.log_] == [1] * 3 + [2] * 3 + [4] * 3
    losses = {"sparsity", "maximum_activation", "inactive", "margin", "uncertainty", "entropy", "learning_rate",
              "multiplier_margin"}  # fmt: skip
    assert losses < set(fitted.log_[0])
    assert {"sparsity_bound", "excessive", "multiplier_excessive"} < set(fitted.log_[3])
    assert {"orthogonality", "multiplier_orthogonality"} < set(fitted.log_[6])
    info = fitted.directions_.info
    assert info["epochs"] == {"a": 3, "b": 3, "d": 3}
    assert info["uncertainty"] == "pooled-affine"
    assert info["in_force"]["steps"]["a"]["lambda_s"] == 2.6
    assert fitted.directions_.method == "eddp-paper"


def test_steps_join_without_a_jump(reader: LayerReader) -> None:
    """(b) begins at the logits at which (a) ended; (c) gives unit signal vectors, from which (d) begins."""
    only_a = UIBE(n_directions=3, a=StepSettings(epochs=20)).fit(reader)
    nothing = {"b": StepSettings(epochs=0), "d": StepSettings(epochs=0)}
    paper = PaperEDDP(n_directions=3, a=StepSettings(epochs=20), **nothing).fit(reader, None)
    x = np.concatenate([block.reshape(-1, 16) for _, block in reader.blocks()])
    np.testing.assert_allclose(paper.decision_function(x), only_a.decision_function(x), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(paper.signals_, only_a.signals_, atol=1e-4)
    np.testing.assert_allclose(paper.mean_, x.mean(0), rtol=1e-5)
    standard = standardised(statistics(reader))
    filters = only_a.filters_ / standard.forward.diagonal().numpy()[:, None]  # back in z-scores: orthogonal, one length
    gram = filters.T @ filters
    np.testing.assert_allclose(gram / gram[0, 0], np.eye(3), atol=1e-5)
    margins = np.linalg.norm(paper.filters_, axis=0)
    moved = PaperEDDP(n_directions=3, a=StepSettings(epochs=20), b=StepSettings(epochs=5, learning_rate=1e-2),
                      d=StepSettings(epochs=0)).fit(reader, None)  # fmt: skip
    assert len(set((np.linalg.norm(moved.filters_, axis=0) / margins).round(6))) == 3


def test_cbe_is_uibe_with_the_uncertainty_term(reader: LayerReader) -> None:
    how = {"n_directions": 3, "a": StepSettings(epochs=5)}
    uibe, cbe = UIBE(**how).fit(reader), CBE(**how).fit(reader)
    assert "uncertainty" not in uibe.log_[0]
    assert uibe.directions_.info["in_force"]["steps"]["a"]["lambda_uncertainty"] == 0
    assert "uncertainty" in cbe.log_[0]
    assert CBE(**how).fit(reader, None).filters_.tobytes() == uibe.filters_.tobytes()
    assert cbe.directions_.info["uncertainty"] == "pooled-affine"
    assert CBE(**how).fit(reader, None).directions_.info["uncertainty"] == "none"


def test_the_general_head_does_what_the_pooled_one_does(reader: LayerReader) -> None:
    weight, bias = reader.store.affine_head(reader.spec.name)
    affine = (torch.from_numpy(weight), torch.from_numpy(bias))
    found = []
    for head in (Head(lambda x: x.mean(1) @ affine[0].T + affine[1], pooled) for pooled in (affine, None)):
        transform = plain(standardised(statistics(reader)), centre=False)
        data = whiten_store(reader, transform, FitterConfig(), max_rows=10**6)
        start = Orthonormal.random(16, 3, margin=0.5, tau=0.9, seed=0)
        model = released(start, standardised(statistics(reader)), transform)
        signals = F.normalize(model.unit().detach(), dim=0)
        term = Uncertainty(transform, data, reader, head, 0, objective="entropy", ridge=0.0, images=60)
        loss, _ = term(*model.linear(), signals)
        found.append(float(loss.detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_lagrangian_form_keeps_its_bounds_and_finds_the_concepts(reader: LayerReader) -> None:
    how = {"n_directions": 3, "preset": "synthetic", "restarts": 3, "restart_epochs": 100}
    fitted = UIBE(**how).fit(reader.only(Part(0, 3)))
    last = fitted.log_[-1]
    assert last["maximum_activation"] < 0.8
    assert last["margin"] < 8 * 1.1
    assert last["inactive"] < 0.1 * 1.1
    found = against_truth(fitted.directions_, reader, read_truth(reader.store.path))
    assert min(found["iou"]) > 0.85


def test_more_directions_than_channels_are_learnt_in_b_and_d() -> None:
    for name, lagrangian in itertools.product(("b", "d"), (False, True)):
        step, _ = learning(name, 3, 7, 40, 1, lagrangian=lagrangian)
        losses = [step.learn()["total"] for _ in range(9)]
        assert np.isfinite(losses).all()
        assert lagrangian or losses[-1] < losses[0]
        assert step.finished


def test_the_command_takes_steps_and_settings_of_a_step(
    reader: LayerReader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run_command(command, "fit", [str(a) for a in ("--store", reader.store.path, "--quiet", *arguments)])
        return int(ended.value.code or 0), capsys.readouterr().err

    out = tmp_path / "d.safetensors"
    few = [part for name in ("a", "b", "d") for part in ("--set", f"{name}.epochs=2")]
    assert call("--directions", 3, "--steps", "paper", *few, "--set", "d.lambda_fso=0.5", "--out", out)[0] == 0
    found = PaperEDDP.load(out)
    assert found.config.n_directions == 3
    assert found.directions_.info["in_force"]["steps"]["d"]["lambda_fso"] == 0.5
    assert found.directions_.info["config"]["d"]["epochs"] == 2
    assert (tmp_path / "d.log.png").exists()
    assert (tmp_path / "d.log.csv").read_text().count("\n") == 7
    code, said = call("--directions", 3, "--method", "pca", "--steps", "paper", "--out", out)
    assert (code, said.count("--steps paper is not for 'pca'")) == (2, 1)
    code, said = call("--directions", 3, "--steps", "paper", "--set", "b.lambda=1", "--out", out)
    assert code == 2
    assert "lambda_s" in said


# the augmented Lagrangian


def test_terms_by_hand() -> None:
    found = Multipliers({"a": 0.5, "b": 2.0}, penalty=3.0)
    assert found.penalties == {"a": 12.0, "b": 0.75}
    assert found.values == {"a": 0.0, "b": 0.0}
    # g = 0.25: (0 + 12 · 0.25)² / 24
    assert float(found.term("a", torch.tensor(0.75))) == pytest.approx(9 / 24)
    assert found.weight("a", 0.75) == pytest.approx(3.0)
    assert float(found.term("a", torch.tensor(0.1))) == 0
    assert found.weight("a", 0.1) == 0
    found.update({"a": 0.75, "b": 1.0})
    assert found.values == {"a": pytest.approx(3.0), "b": 0.0}
    # held with slack, the multiplier falls: 3 + 12 · (−0.1) = 1.8; (1.8² − 3²) / 24
    assert float(found.term("a", torch.tensor(0.4))) == pytest.approx((1.8**2 - 9) / 24)
    found.update({"a": 0.4, "b": 1.0})
    assert found.values["a"] == pytest.approx(1.8)
    found.update({"a": 0.0, "b": 1.0})
    assert found.values["a"] == 0
    assert found.violation({"a": 0.6, "b": 4.0}) == pytest.approx(0.5 * 12 * 0.01 + 0.5 * 0.75 * 4)


@given(st.floats(0, 5), st.floats(0, 5), st.floats(0.05, 9), st.floats(0.01, 10))
def test_the_weight_is_the_terms_slope(loss: float, multiplier: float, bound: float, penalty: float) -> None:
    found = Multipliers({"c": bound}, penalty)
    found.values["c"] = multiplier
    value = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(found.term("c", value), value)
    assert float(slope) == pytest.approx(found.weight("c", loss), rel=1e-9, abs=1e-9)


def test_it_solves_a_problem_whose_optimum_is_known() -> None:
    """min (x − 3)² + (y − 1)² subject to x² < 1: x = 1, y = 1, multiplier 2."""
    found = Multipliers({"c": 1.0}, penalty=1.0)
    x = torch.tensor([0.5, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([x], lr=0.05)
    for _ in range(60):
        for _ in range(20):
            optimiser.zero_grad()
            loss = (x - torch.tensor([3.0, 1.0])).square().sum() + found.term("c", x[0] ** 2)
            loss.backward()
            optimiser.step()
        found.update({"c": float(x[0].detach() ** 2)})
    assert x.tolist() == pytest.approx([1, 1], abs=1e-4)
    assert found.values["c"] == pytest.approx(2, abs=1e-3)
    assert math.isclose(found.violation({"c": 1.0}), 0)
