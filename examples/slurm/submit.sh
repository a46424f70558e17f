#!/bin/bash
# Queues one run: extract (a job array), then fit, then evaluate, each once the one before it has succeeded.
#
#   DATA=/data/places365/val_256 BRODEN=/data/broden1_224 WORK=$SCRATCH/places ./submit.sh
#
# Jobs run in the folder from which it is called: relative paths and a module of your own (MODEL=my_models:birdnet) work.
# After a lost node, a preempted task or a time limit, run the same line again: what is done is skipped, what was started
# is resumed. Options for every job, such as an account, go behind it: ./submit.sh --account=vision
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

: "${DATA:?set it to the images, such as /data/imagenet/val}"
: "${WORK:?set it to a folder that all nodes see; results go there}"
export DATA WORK
export BRODEN="${BRODEN:-}" # a concept dataset, such as /data/broden1_224; without it, labels are the images' classes
export MODEL="${MODEL:-resnet18}" WEIGHTS="${WEIGHTS:-DEFAULT}" LAYER="${LAYER:-layer4}" DIRECTIONS="${DIRECTIONS:-64}"
export EDDP_ENV="${EDDP_ENV:-}" # an environment's folder, where eddp is not on the PATH of the nodes
SHARDS="${SHARDS:-8}"

mkdir -p "$WORK/logs"
after() { echo "--dependency=afterok:${1%%;*} --kill-on-invalid-dep=yes"; }

extract=$(sbatch --parsable --array="0-$((SHARDS - 1))" --output="$WORK/logs/%x-%A-%a.log" "$@" "$here/extract.sbatch")
fit=$(sbatch --parsable $(after "$extract") --output="$WORK/logs/%x-%j.log" "$@" "$here/fit.sbatch")
evaluate=$(sbatch --parsable $(after "$fit") --output="$WORK/logs/%x-%j.log" "$@" "$here/evaluate.sbatch")

echo "queued: extract $extract (array of $SHARDS), fit $fit, evaluate $evaluate"
echo "the result: $WORK/evaluation/report.html and $WORK/report/index.html; how far it is: eddp inspect $WORK/acts.zarr"
