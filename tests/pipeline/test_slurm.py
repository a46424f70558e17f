"""Which shard a process is, over the environments that SLURM and torchrun set."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.slurm import device_of, shard_of
from stores.errors import UsageError

ARRAY = "SLURM_ARRAY_TASK_"


def array(task: int, ids: list[int], step: int = 1) -> dict[str, str]:
    """What SLURM sets for one task of an array with these ids."""
    values = {"ID": task, "MIN": ids[0], "MAX": ids[-1], "STEP": step, "COUNT": len(ids)}
    return {ARRAY + name: str(value) for name, value in values.items()}


def torchrun(rank: int, size: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank % 4)}


@given(low=st.integers(0, 50), count=st.integers(1, 40), step=st.integers(1, 7), size=st.integers(1, 4))
def test_all_tasks_and_ranks_are_all_shards_in_order(low: int, count: int, step: int, size: int) -> None:
    ids = list(range(low, low + count * step, step))
    assert [shard_of("auto", array(task, ids, step)) for task in ids] == [(i, count) for i in range(count)]
    assert [shard_of("auto", torchrun(r, size)) for r in range(size)] == [(r, size) for r in range(size)]
    both = [shard_of("auto", {**array(task, ids, step), **torchrun(r, size)}) for task in ids for r in range(size)]
    assert both == [(i, count * size) for i in range(count * size)]


@pytest.mark.parametrize(
    ("environ", "shard"),
    [
        (array(3, [3]), (0, 1)),  # the one task that was lost, queued again: whatever is missing
        (array(5, [2, 5], 3), (1, 2)),  # two of them, as SLURM says it when it takes their distance for the step
        ({ARRAY + "ID": "4", ARRAY + "MIN": "0", ARRAY + "MAX": "7", ARRAY + "STEP": "1"}, (4, 8)),  # before 17.11
        ({ARRAY + "ID": "2", ARRAY + "COUNT": "3"}, (2, 3)),
        (array(1, [0, 1, 2], 0), (1, 3)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_JOB_ID": "9"}, (1, 2)),
    ],
)
def test_arrays_that_say_less_or_have_one_task(environ: dict[str, str], shard: tuple[int, int]) -> None:
    assert shard_of("auto", environ) == shard


@pytest.mark.parametrize(
    ("text", "environ", "told"),
    [
        ("auto", {}, "--shard auto finds no job array (SLURM_ARRAY_TASK_ID) and no torchrun (RANK, WORLD_SIZE)"),
        ("auto", {"RANK": "0"}, "finds no job array"),
        ("auto", array(3, [1, 3, 7]), "The ids of this job array are no range (3 ids from 1 to 7, 1 apart; this is 3)"),
        ("auto", array(3, [1, 3, 7], 2), "are no range"),
        ("auto", array(2, [2, 5]), "are no range"),
        ("auto", array(9, [0, 1, 2]), "are no range"),
        ("auto", array(0, [1, 2, 3]), "are no range"),
        ("auto", {ARRAY + "ID": "3"}, "SLURM_ARRAY_TASK_COUNT: say which shard this is by hand"),
        ("auto", {**array(1, [0, 1]), ARRAY + "COUNT": "two"}, "SLURM_ARRAY_TASK_COUNT must be an integer, got 'two'"),
        ("auto", {"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 are no rank"),
        ("auto", {"RANK": "-1", "WORLD_SIZE": "2"}, "RANK must be an integer, got '-1'"),
        (None, torchrun(0, 2), "torchrun has started 2 of these processes, and each would do all of the work: add --shard auto"),
        ("3", {}, "--shard must be I/N"),
        ("2/2", {}, "--shard must be I/N"),
    ],
)  # fmt: skip
def test_what_is_refused_is_one_message(text: str | None, environ: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)) as refused:
        shard_of(text, environ)
    assert "\n" not in str(refused.value)


def test_what_is_said_by_hand_counts() -> None:
    assert shard_of("2/8", {**array(1, [0, 1]), **torchrun(1, 2)}) == (2, 8)
    assert shard_of(None, array(1, [0, 1])) is None  # an array may be over something else
    assert shard_of(None, torchrun(0, 1)) is None
    assert shard_of(None, {}) is None


@pytest.mark.parametrize(
    ("device", "environ", "devices", "chosen"),
    [
        ("auto", torchrun(6, 8), 4, "cuda:2"),
        ("cuda", torchrun(6, 8), 4, "cuda:2"),
        ("cuda", torchrun(6, 8), 1, "cuda:2"),  # refused where devices are looked at
        ("cuda:0", torchrun(6, 8), 4, "cuda:0"),
        ("cpu", torchrun(6, 8), 4, "cpu"),
        ("auto", torchrun(6, 8), 0, "auto"),
        ("auto", {}, 4, "auto"),
        ("auto", {"LOCAL_RANK": "3"}, 4, "auto"),
    ],
)
def test_ranks_take_a_device_each(device: str, environ: dict[str, str], devices: int, chosen: str) -> None:
    assert device_of(device, environ, devices) == chosen
