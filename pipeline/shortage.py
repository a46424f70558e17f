"""What a user is told when memory, of the machine or of a GPU, does not suffice: how much was asked for, and what needs less."""

from __future__ import annotations

import re

LESS = {
    "extract": "Use a smaller --batch-size",
    "fit": "Use fewer --directions, or (method eddp) --set rows=store, which keeps no positions in memory",
    "evaluate": "Give fewer --directions files at once, or a smaller --influence-images",
    "report": "Use --visualize none",
    "correct": "Use fewer images in --data and --poisoned",
    "explain": "Explain fewer images at once",
}


def is_shortage(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    from extract.memory import is_out_of_memory  # torch, which a command that is only asked for its help does without

    return is_out_of_memory(error)


def shortage(error: BaseException, command: str) -> str:
    """One sentence for an error that ``is_shortage``, and what to do about it when running ``command``."""
    text = str(error)
    gpu = "CUDA" in text
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
    what = f"{asked[1]} more were asked for" if asked else text.strip().split("\n")[0] or "allocation failed"
    advice = LESS.get(command, "Use smaller inputs")
    return f"there is not enough memory{' on the GPU' if gpu else ''} ({what}). {advice}{', or --device cpu' if gpu else ''}."
