"""Records of runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.run import peak_memory_mib

ROOT = Path(__file__).parents[2]


def test_peak_memory_is_this_processes_own_and_not_that_of_its_parent() -> None:
    block = np.ones(900 * 2**20, np.uint8)
    assert peak_memory_mib() >= 900
    code = "from pipeline.run import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 10 < int(child.stdout) < 800
    assert block[0] == 1
