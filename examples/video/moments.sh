#!/bin/sh
# Moments in Time: what its ResNet-50 has learned, frame by frame, labelled with Broden Action. Run again to resume after a stop.
#
#   MIT=/data/Moments_in_Time_256x256_30fps WEIGHTS=/data/moments_v2_RGB_resnet50_imagenetpretrained.pth.tar \
#   CLASSES=/data/category_momentsv2.txt BRODEN=/data/broden_action WORK=$SCRATCH/moments ./moments.sh
#
# The network is a ResNet-50 with 305 classes (339 in version 1); CLASSES names them in its order, which is not alphabetical.
# It was trained on frames squashed to 224 × 224; a video is 8 frames, each a row of the store. --limit and --shard are for
# parts of the 800,000 videos: 8 frames of each give 1.3 TB for layer4 in all, so begin with the validation set.
set -eu
: "${MIT:?}" "${WEIGHTS:?}" "${CLASSES:?}" "${BRODEN:?}" "${WORK:?}"
mkdir -p "$WORK"

extract --model resnet50 --weights "$WEIGHTS" --class-names "$CLASSES" --layer layer4 --data "mit:$MIT/validation" \
  --frames "${FRAMES:-8}" --resize squash --on-bad-image skip --out "$WORK/acts.zarr"
fit --store "$WORK/acts.zarr" --directions "${DIRECTIONS:-auto}" --out "$WORK/directions.safetensors"
evaluate --store "$WORK/acts.zarr" --directions "$WORK/directions.safetensors" --broden "$BRODEN" --influence --out "$WORK/evaluation"
