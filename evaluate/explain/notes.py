"""What every number and picture of an explanation means, in one place."""

from __future__ import annotations

from evaluate.explain.values import Values


def notes(*, exact: bool, values: Values, prefix: int = 0) -> dict[str, str]:
    """Terms and what they mean: where the head is pooling and an affine map (``exact``) or another, for one way to read signal values, and where some
    positions lie nowhere on the image (``prefix``)."""
    return {**NOTES, **(EXACT if exact else MEASURED), **VALUES[values], **(TOKENS if prefix else {})}


NOTES = {
    "contribution": "The change of the logit when the concept's component, along its signal vector, is set to its mean over the data. Orange: for "
    "the class, blue: against it. Only differences between logits change probabilities: hence the second sum.",
    "little": "The image has less of the concept than images have on average. Its absence counts as well.",
    "label?": "The label fits the direction best, but its detector finds hardly any of it (IoU up to 0.04).",
    "average image": "The logit where every position holds the data's mean.",
    "maps": "What the concept adds to the explained class's logit at each position (signal value times the logit's slope along the signal vector), paler "
    "where it adds little. The yellow line surrounds where the detector fires.",
    "Grad-CAM": "Where the class is seen at this layer, whatever the concept (Selvaraju et al. 2017).",
    "what would make it": "Few changes of mean signal values that turn the prediction, within what 99 % of the store's images have where such a change is "
    "found; run through the model's own head. It says what the head reads, not what a changed photograph would give.",
}  # fmt: skip
EXACT = {
    "no concept": "The part of the logit that none of these directions explains. Read concepts with care where it is large."
}
MEASURED = {
    "interaction": "What is left of the logit when every concept's contribution, measured by itself, is taken away: what concepts do together, and what "
    "none of these directions explains. Read concepts with care where it is large."
}
VALUES = {
    "joint": {"signal values": "Read by all filters jointly, so that what several filters share is counted once."},
    "paper": {"signal values": "Read by each filter by itself: what several filters share is counted several times."},
}  # fmt: skip
TOKENS = {
    "class token": "Tokens that lie nowhere on the image (class and register tokens) are left as they are, in the average image, in contributions and in "
    "changes. What a concept did to them before this layer is not seen here."
}
