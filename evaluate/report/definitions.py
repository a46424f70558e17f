"""What every number in a report means, in one place."""

DEFINITIONS = {
    "IoU": "Intersection over union of a detector's positive positions and a label's positions, over the val split. "
    "Unions count only images annotated in the label's category (Network Dissection).",
    "label": "The label with the largest IoU on the train split; every score is taken on val.",
    "interpretable": "Directions whose IoU on val exceeds 0.04.",
    "distinct": "Different labels among the interpretable directions.",
    "s1": "Sum over directions of the IoU with their label on val.",
    "s2": "Sum over different labels of the best IoU among the directions that carry them.",
    "coverage": "Share of the layer's positions with at least one positive detector, over all images of both splits "
    "(our definition).",
    "redundancy": "Mean number of positive detectors on covered positions, over all images of both splits (our definition).",
    "precision": "Share of a detector's positives that carry its label; mean over interpretable directions.",
    "recall": "Share of the label's positions that its detector finds; mean over interpretable directions.",
    "f1": "Harmonic mean of precision and recall; mean over interpretable directions.",
    "average_precision": "Area under the precision-recall curve of the logit; mean over interpretable directions.",
    "share": "Share of the layer's positions where the detector is positive.",
    "agreement": "Cosine of a direction pair's filter (decoding) and signal vector (encoding) in activation space.",
    "decoding direction": "The filter w with its threshold b: the concept is at a position x when w·x − b > 0.",
    "encoding direction": "The signal vector s: what is added to the activations where the concept is present.",
    "resolution": "mask: logits upsampled bilinearly to the label maps (Network Dissection's way); feature: label maps "
    "sampled at the layer's positions.",
}
