"""``extract`` as a process of its own, slow enough to be met in the midst of its work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HELPERS = Path(__file__).parent
SLOW = ("--model", "tiny_net:slow", "--layer", "second", "--batch-size", 4)
EDDP = "from pipeline.entry import eddp; eddp()"
SMALL_CHUNKS = """
import sys
import stores.layout, pipeline.main
stores.layout.TARGET_CHUNK_BYTES = {chunk_bytes}  # these stores would else be one chunk
pipeline.main.extract_script()
"""


def start(
    *arguments: object, chunk_bytes: int = 1024, code: str | None = None, own_session: bool = False
) -> subprocess.Popen[str]:
    """Begin; ``code`` is run instead of the command, and may print a line first."""
    path = os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])])
    return subprocess.Popen(
        [sys.executable, "-c", code or SMALL_CHUNKS.format(chunk_bytes=chunk_bytes), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        start_new_session=own_session,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def wait_for(path: Path, process: subprocess.Popen[str] | None = None) -> None:
    """Until a file is there; fails after a while, and when the process that should write it has ended."""
    late = time.monotonic() + 100
    while not path.exists():
        assert process is None or process.poll() is None, end(process)
        assert time.monotonic() < late, f"{path} did not come"
        time.sleep(0.01)
