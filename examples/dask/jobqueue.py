"""A dask cluster whose workers are jobs of a queue (dask-jobqueue: SLURM, PBS, SGE, LSF, HTCondor), and the commands on it.

    pip install dask-jobqueue
    python jobqueue.py --queue SLURM --jobs 8 --data /data/imagenet/val --broden /data/broden1_224 --work $SCRATCH/run

The queue's own options (partition, account, GPU) are read from ~/.config/dask/jobqueue.yaml, as dask-jobqueue does, or
given by --directive, as they stand in a batch script: --directive=--gres=gpu:1
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path


def main() -> None:
    """Start the workers, run the three commands with them, and let them go."""
    options = arguments()
    if options.queue == "Local":  # jobs as processes of this machine, to try this file
        from dask_jobqueue.local import LocalCluster as Cluster
    else:
        import dask_jobqueue

        Cluster = getattr(dask_jobqueue, f"{options.queue}Cluster")
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    with Cluster(
        cores=options.cpus,
        processes=1,
        memory=options.memory,
        walltime=options.walltime,
        job_extra_directives=options.directive,
        # one task at a time has the GPU or all cores of the job, and files mapped into memory do not count as used
        worker_extra_args=["--nthreads", "1", "--memory-limit", "0"],
        log_directory=str(work / "logs"),
        local_directory=str(work),
    ) as cluster:
        cluster.scale(jobs=options.jobs)
        cluster.wait_for_workers(1)  # the others join when the queue lets them
        address = cluster.scheduler_address
        store, directions = work / "acts.zarr", work / "eddp.safetensors"
        run("extract", "--model", options.model, "--weights", options.weights, "--layer", options.layer,
            "--data", options.data, "--out", store, "--dask", address)  # fmt: skip
        run("fit", "--store", store, "--model", options.model, "--directions", options.directions, "--out", directions)
        run("evaluate", "--store", store, "--model", options.model, "--directions", directions, "--broden", options.broden,
            "--out", work / "evaluation", "--dask", address)  # fmt: skip


def run(*command: object) -> None:
    """One of eddp's commands; it says itself what is wrong, so that only its exit code is passed on."""
    ended = subprocess.run([str(part) for part in command], check=False)
    if ended.returncode:
        raise SystemExit(ended.returncode)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue", default="SLURM", help="SLURM, PBS, SGE, LSF, HTCondor, OAR, Moab, or Local")
    parser.add_argument("--jobs", type=int, default=4, help="workers, each a job")
    parser.add_argument("--cpus", type=int, default=8, help="cores a job")
    # dask gives a process one thread to compute with: a process a GPU, or on processors one a core
    parser.add_argument("--processes", type=int, default=1, help="processes a job: 1 a GPU, or as many as cores")
    parser.add_argument("--memory", default="32GB", help="memory a job")
    parser.add_argument("--walltime", default="08:00:00")
    parser.add_argument("--directive", action="append", default=[], help="one more line of the job's header")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--layer", default="layer4")
    parser.add_argument("--directions", type=int, default=64)
    parser.add_argument("--data", required=True)
    parser.add_argument("--broden", required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder that all jobs see")
    return parser.parse_args()


if __name__ == "__main__":
    main()
