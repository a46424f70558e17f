"""Attacks on the commands, with the tests' own networks and pictures."""

import os
import sys
from pathlib import Path

_HELPERS = Path(__file__).parents[2] / "helpers"
sys.path[:0] = [str(_HELPERS)]
os.environ["PYTHONPATH"] = f"{_HELPERS}{os.pathsep}{_HELPERS.parents[1]}"  # for other processes
