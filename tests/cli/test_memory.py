"""Commands under a limit on their address space (``ulimit -v``): done, or one message that says memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from own_process import HELPERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce RLIMIT_AS")
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from pipeline import entry
entry.eddp()
"""


def limited(megabytes: int, *arguments: object) -> tuple[int, list[str]]:
    """Exit code and lines on stderr."""
    command = [sys.executable, "-c", LIMITED, str(megabytes), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HELPERS.parents[1])
    return ended.returncode, ended.stderr.splitlines()


@pytest.mark.parametrize(
    ("megabytes", "command"),
    [(300, "verify"), (700, "extract"), (1300, "explain"), (1300, "fit"), (1700, "evaluate")],
)
def test_too_little_for_the_libraries_is_said_before_they_are_loaded(megabytes: int, command: str) -> None:
    code, lines = limited(megabytes, command, "x")
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("Error: there is not enough memory: this process may use")
    assert "Raise the limit" in lines[0]


def test_a_limit_that_suffices(tiny_store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, lines = limited(900, "verify", tiny_store({"a": np.ones((4, 4, 3), np.float32)}), "--quiet")
    assert (code, lines) == (0, [])
