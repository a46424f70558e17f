"""Another distribution with a package of one of our names, such as Hugging Face's ``evaluate``: then one of the two does not work."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("evaluate", "extract", "fit", "stores")
ROOT = Path(__file__).resolve().parents[1]


def name_clash() -> str | None:
    """What another distribution takes from this one, and what to do; None where there is none."""
    for name in PACKAGES:
        spec = find_spec(name)  # executes nothing
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] != ROOT or _is_installed(name):
            where = "" if spec is None or spec.origin is None else f" ('{spec.origin}')"
            return (
                f"Another distribution in this environment also has a package named '{name}'{where}, such as Hugging Face's 'evaluate'. "
                "Only one of the two works. Install eddp in an environment of its own: python3 -m venv eddp-env"
            )
    return None


def _is_installed(name: str) -> bool:
    """Whether a distribution of this name is installed: in one folder with ours, the later one has replaced files of the other."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
