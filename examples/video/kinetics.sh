#!/bin/sh
# A network that takes clips on a folder of videos (Kinetics, UCF101, HMDB51, or your own): a row of the store is a clip.
#
#   VIDEOS=/data/kinetics400/val WORK=$SCRATCH/kinetics ./kinetics.sh
#
# Frames a clip and frames a second are those of the weights (r3d_18: 16 at 15 a second). MODEL and LAYER choose another
# network: mc3_18 and r2plus1d_18 layer4, s3d features, swin3d_t norm, mvit_v2_s norm.
set -eu
: "${VIDEOS:?}" "${WORK:?}"
mkdir -p "$WORK"

extract --model "${MODEL:-r3d_18}" --weights "${WEIGHTS:-DEFAULT}" --layer "${LAYER:-layer4}" --data "$VIDEOS" --on-bad-image skip \
  --out "$WORK/acts.zarr"
fit --store "$WORK/acts.zarr" --directions "${DIRECTIONS:-auto}" --out "$WORK/directions.safetensors"
evaluate --store "$WORK/acts.zarr" --directions "$WORK/directions.safetensors" --influence --out "$WORK/evaluation"
