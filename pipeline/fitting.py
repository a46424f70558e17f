"""One fit from a store to files: the directions, their header for people, and a table and a picture of what was minimised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluate.report.curves import loss_picture
from fit import Fitter
from fit.checkpoint import MINUTES, Checkpoint
from pipeline.run import Run
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.tables import rows_to_columns, write_table

IN_HEADER = ("begun", "seconds", "peak_memory_mib", "code_version", "libraries")


def fit_to_file(
    fitter: Fitter[Any],
    reader: LayerReader,
    out: Path,
    run: Run,
    *,
    minutes: float = MINUTES,
    progress: Progress = silent,
) -> tuple[Fitter[Any], dict[str, Any]]:
    """Fit, and write ``out`` (safetensors), ``.json``, and for methods with a log ``.log.csv``, ``.log.parquet``, ``.log.png``.

    A method that can go on keeps its state in ``.checkpoint`` every ``minutes``, and it is removed when all is written.
    Returns the fitted method and the run's record, part of which is in the file's header.
    """
    checkpoint = Checkpoint(out.with_suffix(".checkpoint") if fitter.resumes else None, minutes)
    fitter.fit(reader, progress=progress, checkpoint=checkpoint)
    record = run.record()
    fitter.directions_.info.update(run={key: record[key] for key in IN_HEADER})
    fitter.save(out)
    if fitter.log_:
        write_table(out.parent, out.stem + ".log", rows_to_columns(fitter.log_))
        loss_picture(fitter.log_, out.with_suffix(".log.png"))
    else:  # of an earlier fit under the same name
        for ending in (".log.csv", ".log.parquet", ".log.png"):
            out.with_suffix(ending).unlink(missing_ok=True)
    checkpoint.remove()
    return fitter, record
