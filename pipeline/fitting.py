"""One fit from a store to files: the directions, their header for people, and a table and a picture of what was minimised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluate.report.curves import loss_picture
from extract.head import open_head
from fit import Fitter
from fit.fitter import Fitted
from pipeline.run import Run
from stores.progress import Progress, silent
from stores.readers import LayerReader
from stores.tables import rows_to_columns, write_table

IN_HEADER = ("begun", "seconds", "peak_memory_mib", "code_version", "libraries")


def fit_to_file(
    fitter: Fitter, reader: LayerReader, out: Path, run: Run, *, progress: Progress = silent
) -> tuple[Fitted, dict[str, Any]]:
    """Fit, and write ``out`` (safetensors), ``.json``, and for methods with a log ``.log.csv``, ``.log.parquet``, ``.log.png``.

    Returns what was fitted and the run's record, part of which is in the file's header.
    """
    uses_head = getattr(fitter, "uses_head", False)
    head = open_head(reader.store, reader.spec.name, device=fitter.config.device) if uses_head else None
    fitted = fitter.fit(reader, head, progress)
    record = run.record()
    fitted.directions.info.update(run={key: record[key] for key in IN_HEADER})
    fitted.directions.save(out)
    if fitted.log:
        write_table(out.parent, out.stem + ".log", rows_to_columns(fitted.log))
        loss_picture(fitted.log, out.with_suffix(".log.png"))
    return fitted, record
