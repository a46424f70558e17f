"""One fit from a store to files: the directions, their header for people, and a table and a picture of what was minimised."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluate.loss_curves import loss_picture
from fit import Fitter
from fit.checkpoint import MINUTES, Checkpoint, difference
from fit.config import KAPPA
from fit.refits import Selection
from fit.verdict import verdict
from pipeline.run import Run, code_version
from stores.directions import Directions, DirectionsError
from stores.errors import StoreExistsError
from stores.progress import Progress, silent
from stores.ranks import ALONE, Ranks
from stores.readers import LayerReader, Part
from stores.tables import rows_to_columns, write_table
from stores.tensors import key_of, reading

DESCENTS = ("refinement", "training")  # stages whose steps are those of a method
IN_HEADER = ("begun", "seconds", "peak_memory_mib", "code_version", "libraries")


def fit_to_file(
    fitter: Fitter[Any],
    reader: LayerReader,
    out: Path,
    run: Run,
    *,
    minutes: float = MINUTES,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    selection: Selection | None = None,
) -> tuple[Fitter[Any], dict[str, Any]]:
    """Fit, and write ``out`` (safetensors), ``.json``, and for methods with a log ``.log.csv``, ``.log.parquet``, ``.log.png``.

    A method that can resume keeps its state in ``.checkpoint`` every ``minutes``, and it is removed when all is written. Of several
    ranks only rank 0 writes. What a ``selection`` of the number of directions tried goes to ``.numbers.csv``, ``.numbers.parquet`` and
    ``.numbers.png``. Returns the fitted method and the run's record, part of which is in the file's header.
    """
    checkpoint = Checkpoint(out.with_suffix(".checkpoint") if fitter.resumes else None, minutes, ranks)
    fitter.fit(reader, progress=progress, checkpoint=checkpoint, ranks=ranks)
    record = run.record()
    if ranks.rank:
        return fitter, record
    rates = rates_of(fitter, run)
    fitter.directions_.info.update(run={key: record[key] for key in IN_HEADER})
    if selection is None:  # of an earlier fit under the same name
        _forget(out, ".numbers")
    else:
        fitter.directions_.info.update(selection=asdict(selection))
        write_table(out.parent, out.stem + ".numbers", rows_to_columns(selection.rows))
        loss_picture(
            selection.rows, out.with_suffix(".numbers.png"), over="directions",
            limits={"kappa": KAPPA}, chosen=selection.number,
            caption=f"dashed: {selection.number} directions, the number taken; dotted: κ = {KAPPA:g}, from where halves count as alike",
        )  # fmt: skip
    if fitter.log_:
        write_table(out.parent, out.stem + ".log", rows_to_columns(fitter.log_))
        loss_picture(fitter.log_, out.with_suffix(".log.png"))
    else:
        _forget(out, ".log")
    fitter.save(out)  # last: where the file is, all is there
    checkpoint.remove()
    numbers_checkpoint(out).remove()
    for problem in verdict(fitter.directions_).problems:
        run.warnings.add(problem)
    return fitter, run.write(rates=rates, result={"out": str(out), "directions": fitter.directions_.count})


def already_fitted(
    out: Path, fitter: Fitter[Any], reader: LayerReader, *, auto: bool = False, overwrite: bool = False
) -> Directions | None:
    """The directions at ``out`` where the same fit by the same code made them; None where there is nothing, or what may be replaced.

    That is directions of the same fit by other code, and with ``overwrite`` any directions. Raises StoreExistsError for all else.
    """
    if not out.exists():
        return None
    with reading(out, "directions file", "It is not changed: give another --out.", StoreExistsError):
        if (key := key_of(out)) != "eddp":
            raise ValueError(f"it holds {key or 'other things'}")
    if overwrite:
        return None
    then = "Give another --out, or --overwrite to replace it."
    try:
        found = Directions.load(out)
    except DirectionsError as error:
        raise StoreExistsError(f"'{out}' (--out) is a damaged directions file. {then}") from error
    kept, asked = _identity_of(found), json.loads(json.dumps(fitter.identity(reader)))
    wanted = asked | asked.pop("config")
    if auto:
        wanted["n_directions"] = "auto"
    elif not wanted["n_directions"]:  # as many as there are labels
        wanted["n_directions"] = found.count
    if kept != wanted:
        about = f"{found.count} directions of {found.layer} by {found.method}"
        raise StoreExistsError(f"'{out}' (--out) holds {about}, fitted otherwise ({difference(kept, wanted)}). {then}")
    return found if found.info.get("run", {}).get("code_version") == code_version() else None


def _identity_of(found: Directions) -> dict[str, Any]:
    """``Fitter.identity`` of the fit that made directions, settings in line; "auto" for a number of directions that was selected."""
    store, part = found.info.get("store", {}), found.info.get("store", {}).get("part")
    identity = store.get("fingerprint", "") + ("" if part is None else f" part {Part(**part)}")
    selected = {"n_directions": "auto"} if "selection" in found.info else {}
    about = {"method": found.method, "layer": found.layer, "store": identity}
    return {**about, **found.info.get("config", {}), **selected}


def numbers_checkpoint(out: Path) -> Checkpoint:
    """Where the numbers of directions that were tried are stored until the fit is written."""
    return Checkpoint(out.with_suffix(".numbers.checkpoint"))


def _forget(out: Path, name: str) -> None:
    for ending in (".csv", ".parquet", ".png"):
        out.with_suffix(name + ending).unlink(missing_ok=True)


def rates_of(fitter: Fitter[Any], run: Run) -> dict[str, float]:
    """Positions, steps and both a second of the descent, from the stage that took them; nothing of methods without one."""
    stages = [stage for stage in run.stages.found.values() if stage.name in DESCENTS or stage.name.startswith("step ")]
    steps, seconds = sum(stage.steps for stage in stages), sum(stage.span for stage in stages)
    if not steps or not seconds:
        return {}
    found = {"steps": steps, "steps_per_second": round(steps / seconds, 3)}
    positions = fitter.directions_.info.get("positions")
    if not isinstance(positions, int):
        return found
    batch = getattr(fitter.config, "batch_rows", 0)  # 0: a step goes through all of them
    rate = steps / seconds * (min(batch, positions) if batch else positions)
    return {"positions": positions, **found, "positions_per_second": round(rate)}
