"""What a run has to work with."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

from pipeline import environment as machine
from pipeline.environment import Busy, cpu_name, device_of, job, peak_gpu_memory_mib, versions


def test_the_processor_and_the_cores_that_may_be_used() -> None:
    found = device_of("cpu")
    assert found == {"kind": "cpu", "name": cpu_name(), "cores": machine.cores()}
    assert found["name"].strip()
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert peak_gpu_memory_mib("cpu") is None


def test_versions() -> None:
    found = versions()
    assert found["libraries"]["torch"] == torch.__version__
    assert set(found["libraries"]) > set(machine.LIBRARIES)
    assert any(name.startswith("faiss-") for name in found["libraries"])


def test_the_batch_job() -> None:
    assert job({}) is None
    assert job({"SLURM_JOB_ID": "4712"}) == "4712"
    assert job({"SLURM_JOB_ID": "4712", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "0"}) == "4711_0"
    assert job({"SLURM_JOB_ID": ""}) is None


def test_a_gpu_is_looked_at_and_never_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with Busy("cpu") as busy:
        pass
    assert busy.share is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "BUSY_SECONDS", 0.001)
    told = iter([100, 50, 60])

    def utilization(device: Any) -> int:
        assert device == "cuda:1"
        return next(told)  # and then nothing any more

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    late = time.monotonic() + 10
    with Busy("cuda:1") as busy:
        while busy._thread is not None and busy._thread.is_alive() and time.monotonic() < late:
            time.sleep(0.01)
    assert busy.share == 0.7

    def missing(device: Any) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    with Busy("cuda:1") as busy:
        time.sleep(0.05)
    assert busy.share is None


@pytest.mark.gpu(real=True)
def test_a_gpu_by_its_name() -> None:
    found = device_of("cuda")
    assert found["name"] == torch.cuda.get_device_name()
    torch.zeros(2**20, device="cuda")
    peak = peak_gpu_memory_mib("cuda")
    assert peak is not None
    assert peak >= 4
