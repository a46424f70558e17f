"""``make bench``: each figure is a ratio to a peer or to a floor, both measured in this run. Prints a Markdown table."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.benchmarks import (
    baselines,
    chain,
    dissection,
    extraction,
    fitting,
    gpu,
    influence,
    load,
    objects,
    ranks,
    report,
    sae,
    scaling,
    store,
    words,
)
from tests.benchmarks.measure import HEAD, write

SUITES = {
    "store": store.rows,
    "objects": objects.rows,
    "extraction": extraction.rows,
    "fitting": fitting.rows,
    "baselines": baselines.rows,
    "ranks": ranks.rows,
    "sae": sae.rows,
    "influence": influence.rows,
    "dissection": dissection.rows,
    "report": report.rows,
    "scaling": scaling.rows,
    "load": load.rows,
    "words": words.rows,
    "gpu": gpu.rows,
    "chain": chain.rows,
}


def main(names: list[str]) -> None:
    chosen = names or list(SUITES)
    unknown = [name for name in chosen if name not in SUITES]
    if unknown:
        sys.exit(f"There is no benchmark {unknown[0]!r}. Benchmarks: {', '.join(SUITES)}.")
    sys.stdout.write(HEAD)
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="eddp-bench-") as folder:
            write(SUITES[name](Path(folder)), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
