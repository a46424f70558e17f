#!/bin/bash
# A dask cluster by hand: one scheduler, workers that see the same files, and the commands that use them.
#
#   DATA=/data/places365/val_256 BRODEN=/data/broden1_224 WORK=/scratch/places ./by_hand.sh
#
# Here all of it runs on this machine. Elsewhere, start `dask scheduler` on one machine and the `dask worker` line on as
# many as there are; a worker may come late, leave, or die: its part is done by another one.
set -euo pipefail
: "${DATA:?set it to the images}" "${BRODEN:?set it to the concept dataset}" "${WORK:?set it to a folder for the results}"
MODEL="${MODEL:-resnet18}" WEIGHTS="${WEIGHTS:-DEFAULT}" LAYER="${LAYER:-layer4}" DIRECTIONS="${DIRECTIONS:-64}" WORKERS="${WORKERS:-2}"
mkdir -p "$WORK"

dask scheduler --host 127.0.0.1 --port 0 --no-dashboard --scheduler-file "$WORK/scheduler.json" &
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
until [ -s "$WORK/scheduler.json" ]; do sleep 0.2; done
# a process a task at a time (a GPU's memory is not shared), and no limit on memory: mapped files would count
for _ in $(seq "$WORKERS"); do
    dask worker --scheduler-file "$WORK/scheduler.json" --nthreads 1 --memory-limit 0 --no-dashboard --local-directory "$WORK" &
done
address=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$WORK/scheduler.json")

extract --model "$MODEL" --weights "$WEIGHTS" --layer "$LAYER" --data "$DATA" --out "$WORK/acts.zarr" --dask "$address"
fit --store "$WORK/acts.zarr" --model "$MODEL" --directions "$DIRECTIONS" --out "$WORK/eddp.safetensors"
evaluate --store "$WORK/acts.zarr" --model "$MODEL" --directions "$WORK/eddp.safetensors" --broden "$BRODEN" --out "$WORK/evaluation" --dask "$address"
