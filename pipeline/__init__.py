"""The command line, configuration, records of runs, and the demo: the top floor, which knows all others."""

import os

# Waiting threads that spin steal the core from whoever has work: with one other busy process on a 2-core machine a
# fit was seen to take 2 to 15 times as long. Asleep they cost nothing measurable on an idle machine. This must be set
# before the first import of torch, numpy or faiss loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
