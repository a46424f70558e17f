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
    "precision": "Share of a detector's positives, in images annotated in its label's category, that carry the label: its "
    "purity; mean over interpretable directions.",
    "recall": "Share of the label's positions that its detector finds; mean over interpretable directions.",
    "f1": "Harmonic mean of precision and recall; mean over interpretable directions.",
    "average_precision": "Area under the precision-recall curve of the logit; mean over interpretable directions.",
    "intervals": "95 % percentile intervals of the scores on val, from 200 Poisson bootstrap replicates that draw its images "
    "anew; labels stay those chosen on train (our definition).",
    "supervised_thresholds": "The same scores on val with each detector's threshold replaced by the logit of the best F1 with "
    "its label on train; means over the directions that are interpretable with their own thresholds.",
    "union": "All directions of a set that carry the same label taken together, positive where any of them is (Network "
    "Dissection); means over labels whose union has an IoU above 0.04, s2 the sum of the IoUs of all.",
    "share": "Share of the layer's positions where the detector is positive.",
    "agreement": "Cosine of a direction pair's filter (decoding) and signal vector (encoding) in activation space.",
    "decoding direction": "The filter w with its threshold b: the concept is at a position x when w·x − b > 0.",
    "encoding direction": "The signal vector s: what is added to the activations where the concept is present.",
    "resolution": "mask: logits upsampled bilinearly to the label maps (Network Dissection's way); feature: label maps "
    "sampled at the layer's positions.",
}

REFITS = {
    "found again": "Number of short fits on random halves of the images that contain the direction: matched one to one, the |correlation| of its "
    "logits with its partner's is above 0.9. Of a set: the share of its directions that at least half of these fits contain. A direction "
    "that other images do not give may be chance (our definition).",
}

INFLUENCE = {
    "pushes": "The classes whose probability changes most when every position of the layer is moved along the direction's signal "
    "vector (unit norm), in percentage points, mean over the images; in italics where random directions do as much.",
    "SDC": "Directions whose signal vector changes at least one class significantly by the paper's rule: the share of images whose "
    "probability does not fall is more extreme than with any null direction.",
    "SCDP": "Pairs of signal vector and class that are significant by that rule.",
    "beyond nulls": "Pairs whose change of logit is larger, in standard deviations of the detector's null directions (classifiers trained on "
    "permuted labels), than that of any null direction on any class: the chance of any false claim is below 5 % (our definition).",
    "beyond random": "Pairs whose change of logit is larger than that of directions drawn at random, after Holm's correction at 5 % (our "
    "definition).",
    "S3": "Share of pairs of label and class where the label's pattern-CAV (difference of class means) has a stronger score than every signal "
    "vector with that label.",
}
