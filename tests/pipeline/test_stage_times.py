"""Where the time of a run goes, by its progress."""

from __future__ import annotations

import pytest

from pipeline import stage_times as stages
from pipeline.stage_times import Stages


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """``clock[0]`` is the time."""
    now = [100.0]
    monkeypatch.setattr(stages.time, "monotonic", lambda: now[0])
    return now


def test_seconds_steps_and_rates(clock: list[float]) -> None:
    run = Stages()

    def after(seconds: float, *told: object) -> None:
        clock[0] += seconds
        run(*told)  # type: ignore[arg-type]

    after(1.0, "loading", 0)  # announced: the second before is nobody's
    after(4.0, "extraction", 20, 100)  # goes on from 20; the model took these seconds
    after(2.0, "extraction", 40, 100)
    after(2.0, "extraction", 60, 100)
    after(3.0, "writing", 7, 7)  # told when it was done
    found = {stage["stage"]: stage for stage in run.record()}
    assert found["loading"] == {"stage": "loading", "seconds": 4.0, "done": 0, "total": None}
    assert found["extraction"] == {"stage": "extraction", "seconds": 4.0, "done": 60, "total": 100, "per_second": 10.0}
    assert found["writing"] == {"stage": "writing", "seconds": 3.0, "done": 7, "total": 7, "per_second": 2.333}
    assert run.steps("extraction") == 40
    assert run.steps("none") == 0
    assert run.rate("none") is None
    assert run.reached() == "writing, 7 of 7"


def test_a_stage_that_comes_again_adds_up(clock: list[float]) -> None:
    run = Stages()
    assert run.reached() == ""
    assert not run.worked
    for _ in range(2):
        for done in (0, 5, 10):
            clock[0] += 1.0
            run("pass", done, 10)
        clock[0] += 1.0
        run("other", 1)
    passes = run.found["pass"]
    assert (passes.steps, passes.span, passes.per_second) == (20, 4.0, 5.0)
    assert run.worked


def test_nothing_done_is_nothing(clock: list[float]) -> None:
    run = Stages()
    run("loading", 0)
    clock[0] += 1.0
    run("extraction", 0, 10)
    assert not run.worked
    assert run.found["extraction"].per_second is None
