"""What the records of runs say of a result: as values for JSON, and as lines for people.

A record is a file that anybody may have written: whatever is in it is shown, cut short where it is long, and nothing is believed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.progress_display import format_seconds
from pipeline.records import Place, attempts_of, outcome_of, read_record, shards_of
from stores.errors import EDDPError

LONGEST = 300  # characters of a text that is shown
SHOWN = 10  # of a list: attempts, warnings
ABOVE = ("command", "outcome", "begun", "ended", "seconds", "host", "reached")  # of a record: in its first line
Record = Mapping[str, Any]


def runs_at(place: Place | None) -> dict[str, Any]:
    """``{"run": the record}``, ``{"run": {"file", "unreadable"}}``, or nothing where none is stored."""
    for path in () if place is None else (place.path, place.aside):
        try:
            if path is not None:
                read_record(path)  # says why it cannot be read
                return {"run": (place and place.read()) or {}}
        except FileNotFoundError:
            continue
        except EDDPError as error:
            return {"run": {"file": str(path), "unreadable": str(error)}}
    return {}


def shards_at(store: Path) -> dict[str, Any]:
    """The shards of a store by their records: ``of``, one row a shard, how many are in each state, totals, the slowest; or nothing.

    Where it was cut in several ways, those of the way of the latest run are listed, and ``other_cuts`` counts the others.
    """
    every: dict[int, dict[int, dict[str, Any]]] = {}
    for (number, of), path in shards_of(store).items():
        every.setdefault(of, {})[number] = _shard(number, path)
    if not every:
        return {}
    of = max(every, key=lambda n: max(str(row.get("begun") or "") for row in every[n].values()))
    rows = list(every[of].values())
    absent = [k for k in range(min(of, 10**6)) if k not in every[of]] if of < 10**6 else []
    ended = [row for row in rows if row["outcome"] == "done"]
    slow = [row for row in ended if row["images_per_second"]]
    found: dict[str, Any] = {
        "of": of,
        "rows": rows,
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "without_record": absent,
        "slowest": min(slow, key=lambda row: row["images_per_second"])["shard"] if slow else None,
        "totals": {
            "images": sum(row["images"] or 0 for row in rows),
            "seconds": round(sum(row["seconds"] or 0 for row in rows), 2),
            "wall_seconds": _wall(rows),
        },
    }
    if len(every) > 1:
        found["other_cuts"] = {n: len(kept) for n, kept in every.items() if n != of}
    return {"shards": found}


def _shard(number: int, path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {
        "shard": number,
        "outcome": "unreadable",
        "images": None,
        "seconds": None,
        "images_per_second": None,
    }
    try:
        record = read_record(path)
    except (EDDPError, OSError) as error:
        return {**row, "error": str(error), "attempts": 0}
    result, rates = _dict(record.get("result")), _dict(record.get("rates"))
    images = number_of(result.get("images"))
    if images is None:
        images = number_of(record.get("done_now"))
    rate = number_of(rates.get("images_per_second"))
    if rate is None:
        rate = next((number_of(s.get("per_second")) for s in _stages(record) if s.get("stage") == "extraction"), None)
    return {
        **row,
        "outcome": outcome_of(record),
        "images": images,
        "seconds": number_of(record.get("seconds")),
        "images_per_second": rate,
        "host": record.get("host"),
        "begun": record.get("begun"),
        "ended": record.get("ended"),
        "job": record.get("job"),
        "error": record.get("error"),
        "attempts": 1 + len(attempts_of(record)),
    }


def _wall(rows: list[dict[str, Any]]) -> float | None:
    """Seconds from first start to last end; None where a time is missing or none."""
    with suppress(ValueError, TypeError):
        begun = [datetime.fromisoformat(str(row["begun"])) for row in rows if row.get("begun")]
        ended = [datetime.fromisoformat(str(row["ended"])) for row in rows if row.get("ended")]
        if begun and ended:
            return (max(ended) - min(begun)).total_seconds()
    return None


def run_lines(record: Record) -> Iterator[str]:
    """One run as a table of its record; then its stages, warnings, and the other attempts at the same result."""
    yield ""
    if "unreadable" in record:
        yield f"run: its record '{text_of(record.get('file'))}' cannot be read: {text_of(record['unreadable'])}"
        return
    yield f"run: {text_of(record.get('command', 'unknown'))}, {_summary(record)}"
    for key, value in record.items():
        if isinstance(value, dict) and key != "options":
            entries = [f"{text_of(name)} {text_of(entry)}" for name, entry in value.items() if entry not in (None, [])]
            yield _line(text_of(key), text_of(", ".join(entries[:SHOWN])))
        elif key not in ABOVE and not isinstance(value, dict | list):
            yield _line(text_of(key).replace("_", " "), text_of(value, 2000))
    yield from _listed("stages", [_stage(stage) for stage in _stages(record)], most=40)
    warnings = record.get("warnings")
    found = [_dict(one) for one in warnings] if isinstance(warnings, list) else []
    yield from _listed("warnings", [f"{_times(one)}{text_of(one.get('message'))}" for one in found])
    yield from _listed("other attempts", [_attempt(one) for one in attempts_of(record)], last=True)


def shard_lines(shards: Record, *, sealed: bool) -> Iterator[str]:
    """The shards of a store as a table. In a sealed one nothing is missing, whatever the records say."""
    rows, of = shards["rows"], shards["of"]
    yield ""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in shards["outcomes"].items())
    yield f"shards: {of}, of which {counts}" + (
        f", {len(shards['without_record'])} without a record" if shards["without_record"] else ""
    )
    yield f"  {'shard':>6}  {'outcome':<12}{'images':>10}{'images/s':>10}{'time':>14}{'attempts':>10}  host"
    for row in rows[:1000]:
        images = "–" if row["images"] is None else f"{row['images']:.0f}"
        rate = "–" if row["images_per_second"] is None else f"{row['images_per_second']:.1f}"
        seconds = "–" if row["seconds"] is None else format_seconds(row["seconds"])
        slow = "  slowest" if row["shard"] == shards["slowest"] and len(rows) > 1 else ""
        host = text_of(row.get("host") or "–")
        yield f"  {row['shard']:>6}  {row['outcome']:<12}{images:>10}{rate:>10}{seconds:>14}{row['attempts']:>10}  {host}{slow}"
    totals = shards["totals"]
    wall = f", {format_seconds(totals['wall_seconds'])} from first start to last end" if totals["wall_seconds"] else ""
    yield f"  in all {totals['images']:.0f} images, {format_seconds(totals['seconds'])} of work{wall}"
    for row in rows:
        if row["outcome"] != "done" and row.get("error"):
            yield f"  shard {row['shard']}: {text_of(row['error'])}"
    if shards["without_record"] and not sealed:
        listed = ", ".join(map(str, shards["without_record"][:SHOWN]))
        more = " and more" if len(shards["without_record"]) > SHOWN else ""
        yield f"  no record of shard {listed}{more}: not started, or killed before anything was done"
    for other, count in shards.get("other_cuts", {}).items():
        yield f"  {count} more records are of {other} shards"


def _summary(record: Record) -> str:
    """How and when a run went, and where."""
    outcome, seconds = outcome_of(record), number_of(record.get("seconds"))
    after = "" if seconds is None else f" after {format_seconds(seconds)}"
    how = {
        "done": f"done in {format_seconds(seconds)}" if seconds is not None else "done",
        "running": f"running at its last update{after}",
        "lost": f"presumed killed{after}",
    }.get(outcome, f"{outcome}{after}")
    begun, host = _time(record.get("begun")), text_of(record.get("host"))
    reached = f", in {text_of(record['reached'])}" if record.get("reached") and outcome != "done" else ""
    return f"{how}{reached}; started {begun} on {host}"


def _time(value: Any) -> str:
    """A time as people read it, to the second."""
    try:
        return datetime.fromisoformat(value).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (TypeError, ValueError, OverflowError):
        return text_of(value)


def _attempt(record: Record) -> str:
    done, error = number_of(record.get("done_now")), record.get("error")
    images = f", {done:.0f} images done" if done else ""
    return f"{_summary(record)}{images}" + (f": {text_of(error)}" if error else "")


def _stage(stage: Record) -> str:
    done, total = number_of(stage.get("done")), number_of(stage.get("total"))
    rate, seconds = number_of(stage.get("per_second")), number_of(stage.get("seconds")) or 0.0
    steps = f"{done:.0f} of {total:.0f}" if done is not None and total else ("" if not done else f"{done:.0f}")
    return f"{text_of(stage.get('stage')):<22}{seconds:>10.1f} s  {steps:>20}" + (f"  {rate:.4g}/s" if rate else "")


def _times(one: Record) -> str:
    count = number_of(one.get("count")) or 1
    return f"{count:.0f} times: " if count > 1 else ""


def _listed(label: str, lines: list[str], *, most: int = SHOWN, last: bool = False) -> Iterator[str]:
    """Some lines under a label, the first or the last of them where they are many."""
    if lines:
        yield f"  {label}:"
        left = len(lines) - most
        if left > 0 and last:
            yield f"    {left} before these"
        yield from (f"    {line}".rstrip() for line in (lines[-most:] if last else lines[:most]))
        if left > 0 and not last:
            yield f"    and {left} more"


def _line(label: str, text: str) -> str:
    return f"  {label:<22}{text}"


def _stages(record: Record) -> list[dict[str, Any]]:
    found = record.get("stages")
    return [stage for stage in found if isinstance(stage, dict)] if isinstance(found, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def number_of(value: Any) -> float | None:
    """A finite number not below 0, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        if math.isfinite(value) and 0 <= value < 1e15:
            return value
    return None


def text_of(value: Any, longest: int = LONGEST) -> str:
    """A value as one line of text: nothing in it can move a terminal's cursor, and it is cut where it is long."""
    text = "unknown" if value is None else str(value)[: longest + 1]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.replace("\n", " "))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
