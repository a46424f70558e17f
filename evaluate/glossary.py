"""The glossary: what each column, measure and term means, written once for table headers, tooltips, data dictionary and pages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A column: type (string, integer, number, boolean; object in summary.json), unit (empty for none), definition, source ("paper: …" or "ours")."""

    type: str
    unit: str
    definition: str
    source: str = "ours"


@dataclass(frozen=True)
class Measure:
    """A measure of a set of directions: key in summary.json, heading, which is better (+1 more, −1 less), definition."""

    key: str
    title: str
    better: int
    entry: Term

    @property
    def shown(self) -> bool:
        """Whether pages show it: significance by other rules than ours is in the tables."""
        return self.key not in ("sdc", "scdp", "significant_bh")

    @property
    def text(self) -> str:
        return self.entry.definition


BAU = "paper: Network Dissection (Bau et al. 2017)"
UIBE = "paper: UIBE"
EDDP = "paper: EDDP"
RCAV = "paper: RCAV (Pfau et al. 2021)"
INVERT = "paper: INVERT (Bykov et al. 2023)"
CLIP_DISSECT = "paper: CLIP-Dissect (Oikarinen & Weng 2023)"
PACH = "paper: Pach et al. 2025"
SEMANTIC_LENS = "paper: SemanticLens (Dreyer et al. 2025)"
NEURONEVAL = "paper: NeuronEval (Oikarinen et al. 2025)"
SURF = "paper: SURF (Kumar & Ahuja 2025)"
VAL = "on the val split"
SIGNIFICANT = (
    "the change of the class's logit is larger than that of the direction's null directions (classifiers trained on permuted labels) and than that of "
    "random directions, each tested at a level of 5 % for any false claim about a file's vectors of one role at one step. Where a layer has few "
    "channels, null directions may point along the concepts themselves, and then nothing is significant."
)

COMMON = {
    "directions": Term("string", "", "Directions file, by its name without ending."),
    "method": Term("string", "", "Method that found the directions."),
    "index": Term("integer", "", "Number of the direction in its file, from 0."),
    "name": Term("string", "", "Name of the direction: a person's (names.csv), else its label where that fits (interpretable), else its significant label of the table class_labels, else its significant word of vocabulary_labels, numbered where several directions of the file carry it, else direction and its number."),
    "label": Term("string", "", "Label of the direction: the one of largest IoU on the train split; empty for none.", BAU),
    "category": Term("string", "", "Category of the label in the concept dataset.", BAU),
    "class": Term("integer", "", "Class of the model, from 0."),
    "class_name": Term("string", "", "Name of the class."),
    "role": Term("string", "", "Vector that the activations are moved along: signal (encoding direction), filter (decoding direction) or random."),
    "alpha": Term("number", "activation", "Length of the step along the unit vector, at every position.", RCAV),
    "iou_train": Term("number", "share", "Intersection over union of the detector's positives and the label, on the train split.", BAU),
    "iou_val": Term("number", "share", f"Intersection over union of the detector's positives and the label, {VAL}.", BAU),
    "precision": Term("number", "share", f"Share of the detector's positives that carry the label, {VAL}.", EDDP),
    "recall": Term("number", "share", f"Share of the label's positions where the detector is positive, {VAL}.", EDDP),
    "f1": Term("number", "share", f"Harmonic mean of precision and recall, {VAL}.", EDDP),
    "average_precision": Term("number", "share", f"Area under the precision-recall curve of the detector's logit, {VAL}; empty where the label does not occur.", EDDP),
    "share": Term("number", "share", "Share of the layer's positions where the detector is positive, both splits."),
    "agreement": Term("number", "cosine", "Cosine of the direction's filter and its signal vector, in activation space."),
    "found_again": Term("number", "share", "Share of refits on random halves of the images that contain the direction, with a |correlation| of the detectors' logits above 0.9; 0 where it correlates as much with another direction of its file; empty without refits."),
    "monosemanticity": Term("number", "cosine", "Monosemanticity score: activation-weighted mean cosine of the embeddings of all pairs of images.", PACH),
    "firing_monosemanticity": Term("number", "cosine", "Mean cosine of the embeddings of all pairs of the direction's examples (its strongest images, cut to where it fires), after the mean embedding of parts of random images is subtracted, less the same of these parts: 0 is what random images have."),
    "clarity": Term("number", "cosine", "Mean cosine of the embeddings of all pairs of the direction's examples (its strongest images, cut to where it fires).", SEMANTIC_LENS),
    "polysemanticity": Term("number", "1 − cosine", "1 − cosine of the centres of two clusters (k-means) of the embeddings of the direction's examples; where a cluster has fewer than two, 1 − mean cosine of the examples' mean and the first ten.", SEMANTIC_LENS),
    "semantic_redundancy": Term("number", "cosine", "Largest cosine of the mean embedding of the direction's examples with that of another direction of the file; empty where there is none.", SEMANTIC_LENS),
}  # fmt: skip

MEASURES = tuple(Measure(key, title, better, Term(*entry)) for key, title, better, *entry in (
    ("s1", "S1", 1, "number", "", f"Sum over directions of the IoU with their label, {VAL}.", UIBE),
    ("s2", "S2", 1, "number", "", f"Sum over distinct labels of the best IoU among their directions, {VAL}.", UIBE),
    ("interpretable", "Interpretable", 1, "integer", "directions", f"Directions whose IoU with their label exceeds 0.04 {VAL}.", BAU),
    ("distinct", "Distinct", 1, "integer", "labels", "Different labels among the interpretable directions.", BAU),
    ("coverage", "Coverage", 1, "number", "share", "Share of the layer's positions with at least one positive detector, both splits."),
    ("redundancy", "Redundancy", -1, "number", "detectors", "Mean number of positive detectors on covered positions, both splits."),
    ("precision", "Precision", 1, "number", "share", f"Mean precision of the interpretable directions, {VAL}.", EDDP),
    ("recall", "Recall", 1, "number", "share", f"Mean recall of the interpretable directions, {VAL}.", EDDP),
    ("f1", "F1", 1, "number", "share", f"Mean F1 of the interpretable directions, {VAL}.", EDDP),
    ("average_precision", "AP", 1, "number", "share", f"Mean average precision of the interpretable directions, {VAL}.", EDDP),
    ("significant", "Significant pairs", 1, "integer", "pairs", f"Pairs of signal vector and class, at the step alpha of summary.json: {SIGNIFICANT}"),
    ("significant_directions", "Significant directions", 1, "integer", "directions", "Signal vectors with at least one significant pair."),
    ("sdc", "SDC", 1, "integer", "directions", "Signal vectors with at least one class by the paper's rule (significant_paper of the table influence), which is not corrected for the number of pairs.", EDDP),
    ("scdp", "SCDP", 1, "integer", "pairs", "Pairs of signal vector and class by the paper's rule (significant_paper of the table influence), which is not corrected for the number of pairs.", EDDP),
    ("significant_bh", "BH pairs", 1, "integer", "pairs", "Pairs of signal vector and class by Benjamini & Hochberg's rule on counted null directions (significant_bh of the table influence)."),
    ("s3", "S3", -1, "number", "share", "Share of (label, class) pairs whose Pattern-CAV beats every signal vector of the label; below 0.5 the signal vectors are more influential.", EDDP),
    ("monosemanticity", "Monosemanticity", 1, "number", "cosine", "Mean monosemanticity score of the directions that have one.", PACH),
    ("firing_monosemanticity", "Monosemanticity where it fires", 1, "number", "cosine", "Mean of firing_monosemanticity over the directions: how alike the examples of a direction (its strongest images, cut to where it fires) are to an image encoder, beyond parts of random images."),
    ("clarity", "Clarity", 1, "number", "cosine", "Mean clarity of the directions: how alike the examples of each are to an image encoder.", SEMANTIC_LENS),
    ("polysemanticity", "Polysemanticity", -1, "number", "1 − cosine", "Mean polysemanticity of the directions: how far two clusters of the examples of each are apart.", SEMANTIC_LENS),
    ("semantic_redundancy", "Semantic redundancy", -1, "number", "cosine", "Mean over directions of the largest cosine of the mean embedding of their examples with another direction's.", SEMANTIC_LENS),
    ("stability", "Stability", 1, "number", "correlation", "Mean |correlation| of the detectors' logits over the data with those of the other files of the method, matched one to one."),
    ("stability_kappa", "Stability κ", 1, "number", "share", "The same corrected for chance: 0 is no better than the directions of one file among themselves, 1 the same directions."),
    ("found_again", "Found again", 1, "number", "share", "Share of the directions that at least half of the refits on random halves of the images contain."),
))  # fmt: skip

_MEASURED = {measure.key: measure.text for measure in MEASURES}
_KAPPA = "(matched − by chance) / (1 − by chance): 0 is no better than chance, 1 the same directions."

PARTS: dict[str, dict[str, str]] = {
    "labels": {
        "IoU": COMMON["iou_val"].definition + " Unions count only images annotated in the label's category (Network Dissection).",
        "label": "The label with the largest IoU on the train split; every score is computed on the val split. It names the direction where it fits: "
        "where its IoU on val exceeds 0.04. Several directions of one label are numbered.",
        "no label fits": "No label of the concept dataset has an IoU above 0.04 with the direction on the val split. The direction may still show one thing "
        "clearly, for which the dataset has no label: look at its images, and name it yourself.",
        "too few validation images": "Fewer than five images of the val split show the label: its scores say little.",
        "as good": "Labels whose IoU on val reaches the interval of the direction's label: the data do not decide between them.",
        **{key: _MEASURED[key] for key in ("interpretable", "distinct", "s1", "s2")},
        **{key: COMMON[key].definition for key in ("precision", "recall", "f1", "average_precision")},
        "interval": "95 % percentile interval of a score on the val split, from 200 Poisson bootstrap replicates of its images; the labels chosen "
        "on train are fixed (our definition).",
    },
    "scores": {
        "supervised_thresholds": "The same scores on val with each detector's threshold replaced by the logit of the best F1 with "
        "its label on train; means over the directions that are interpretable with their own thresholds.",
        "union": "All directions of a set that carry the same label taken together, positive where any of them is (Network "
        "Dissection); means over labels whose union has an IoU above 0.04, s2 the sum of the IoUs of all.",
        "label tests": "Does a score fall when half of a label's positives are missing (by image), and when as many false ones are added? IoU, F1 and AP "
        "should. Recall does not notice missing labels (a label that is too narrow), precision does not notice extra ones (a label that is too wide), and "
        "the area under the ROC curve hardly notices missing labels of a rare concept: none of these should choose a label (Oikarinen et al. 2025). Where "
        "IoU rises with false labels, the direction fires on much more than its label.",
        "resolution": "mask: logits upsampled bilinearly to the label maps (Network Dissection); feature: label maps "
        "sampled at the layer's positions.",
    },
    "class labels": {
        "class label": "The class of the store's images, or up to three classes joined by OR, or NOT these, whose images the direction's mean logit ranks "
        "first (INVERT). It is chosen on half of the images; AUROC (0.5 is chance) and tests are of the other half. It is significant at 5 % (Benjamini & "
        "Hochberg over the file's directions) where chance (Mann-Whitney) and random directions that are labelled in the same way do not reach it: "
        "classes are often apart along random directions, too.",
    },
    "words": {
        "word": "The word of a list that an image-text encoder sees most in what the direction fires on: chosen on half of its strongest images, cut to where it "
        "fires, and scored on the others: by how many standard deviations its evidence (soft-WPMI, CLIP-Dissect) is above that in random directions. It is significant where random directions hardly ever have a word with such a score "
        "(5 %, adjusted for the number of directions); then it names a direction that has no other label.",
    },
    "meaning": {
        "where it fires": "Measures of a direction's examples, its strongest images cut to where it fires, in the embeddings of an image encoder, means over the "
        "directions. The range is that of 95 % of random directions, whose strongest images are often alike, too; by chance 2.5 % of the directions are beyond it.",
        "monosemanticity where it fires": COMMON["firing_monosemanticity"].definition,
        "clarity": COMMON["clarity"].definition,
        "polysemanticity": COMMON["polysemanticity"].definition,
        "semantic redundancy": COMMON["semantic_redundancy"].definition,
    },
    "pairs": {
        "coverage": _MEASURED["coverage"],
        "redundancy": _MEASURED["redundancy"],
        "share": COMMON["share"].definition,
        "agreement": COMMON["agreement"].definition,
        "decoding direction": "The filter w with its threshold b: the concept is at a position x when w·x − b > 0.",
        "encoding direction": "The signal vector s: what is added to the activations where the concept is present.",
    },
    "site": {
        "logit": "Of a detector: w·x − b, how far a position is beyond the threshold; the detector is positive, it fires, where it is above 0. Methods without "
        "thresholds of their own get one that their largest logits exceed (the top 0.5 % of the store's positions by default). Of a class: the "
        "network's output before the softmax.",
        "top images": "The images on which a detector has its largest logit at any position: of the store, or, on the pages that evaluate "
        "writes, of the concept dataset. The region where it is positive is bright and outlined; logits between the layer's positions are "
        "interpolated.",
        "distribution": "Number of positions of all these images with a logit in each bin, on a logarithmic scale.",
        "neighbours": "The directions of largest cosine between signal vectors, and between filters, in activation space.",
        "map": "Directions whose signal vectors have a large cosine are close: t-SNE of 1 − cosine, classical scaling for fewer than ten. Only "
        "distances between neighbours mean something; the axes do not.",
        "predicted class": "The class with the network's largest class logit for an image.",
    },
    "clips": {
        "frames of a clip": "One for each step in time that the layer has, from the middle of the step's share of the clip; of more than eight steps eight, "
        "spread evenly. Pink: the frame on which the detector has its largest logit.",
    },
    "diagnosis": {
        "dead": "A detector that hardly ever fires on the positions it was fitted on.",
        "duplicate": "A filter that is almost the same as another one of the set.",
        "overfull": "A detector that fires at most positions.",
        "signal vector like": "A signal vector that is almost parallel to another one of the set: pushing along them does the same, though their detectors may differ.",
    },
    "diagnosis numbers": {
        "positions per direction": "Positions that the fit had, divided by the number of directions.",
        "agreement in fit coordinates": "Mean cosine of each filter with its own signal vector, in whitened coordinates.",
        "mixing": "Root mean square cosine of each filter with the other directions' signal vectors, in whitened coordinates: 0 where no detector reads another's concept.",
        "median share": "Share of positions at which the median detector fires.",
        "loss seen": "Mean loss of two refits on images that they were fitted on.",
        "loss unseen": "Mean loss of two refits on images that they were not fitted on.",
        "kappa": "How alike pairs of refits on two halves of the images are, by the correlation of their logits. " + _KAPPA,
        "too alike": "Directions so like another one of the set that found again cannot be counted.",
    },
    "refits": {
        "found again": "Number of short fits on random halves of the images that contain the direction: matched one to one, the |correlation| of its "
        "logits with its partner's is above 0.9. Of a set: the share of its directions that at least half of these fits contain. A direction "
        "that other images do not give may be chance. One that correlates as much with another direction of its set finds a partner by chance: it does not "
        "count as found, and adds to 'too alike' in the diagnosis (our definition).",
    },
    "selection": {
        "κ of halves": "Of a number of directions that was tried: two halves of the images are fitted, and their directions matched one to one by the |correlation| of "
        "their logits. " + _KAPPA + " Chance is two different directions of one half; from 0.5 halves count as alike. Mean of two pairs of halves (our definition).",
    },
    "stability": {
        "matched": "The directions of two fits are matched one to one, for each measure anew, so that its mean over the pairs is largest.",
        "by chance": "The same of this fit and of the other one with themselves, no direction with itself: the value for any two directions of a fit.",
        "kappa": _KAPPA,
        "mutual": "Share of the first fit's directions whose nearest of the other fit, by the correlation of logits, has them as its nearest.",
        "nearest in the set": "Mean |correlation| of logits of this set's directions with the nearest other one of the set: near 1, it has duplicates.",
    },
    "truth": {
        "true concept": "A concept that the synthetic store was made with, matched one to one with a direction so that the sum of the IoUs is largest.",
        "found": "A true concept is found where the IoU of its direction's positive positions and those where it is present is above 0.5.",
        "distinct matches": "Share of true concepts whose direction of largest IoU is no other concept's.",
        "RMSE": "Root mean square difference of a direction pair's signal values and the true ones, about their means, over matched concepts "
        "and all positions.",
    },
    "influence": {
        "pushes": "The classes whose probability changes most when every position of the layer is moved along the direction's signal "
        "vector (unit norm), in percentage points, mean over the images.",
        "significant": _MEASURED["significant"],
        "typical distance": "The root mean square distance of the layer's activations from their mean: the length of a step is held against it (our definition).",
        "S3": _MEASURED["s3"],
    },
    "influence pages": {
        "concept influence diagram": "Of one class, the at most ten signal vectors that raise its probability most and the ten that lower it most.",
        "steering": "Change of the probability of one class, the one that small steps along the signal vector raise most, as all images are "
        "moved further and further; the same along the filter and along random directions (each followed on the class that it raises most).",
        "suspects": "Concepts that make a shortcut possible: signal vectors with their label raise a class beyond random directions, and either they are small "
        "and of one class (at least 90 % of the images that show them are predicted as it, they cover at most a tenth of the image on average) or they are in most "
        "images of the class (at least 80 % of the images predicted as it, at most half of all): a large one may be its background. Whether such a concept "
        "belongs to its class only a person can say (our definition).",
    },
    "visualization": {
        "feature visualisation": "A picture synthesised so that the layer's activations go as far as possible along a direction, with the response of "
        "the pair's own detector (its mean logit over the layer's positions), and its response to pictures synthesised along random "
        "directions: if the signal vector is what the filter reads, it fires on the first and not on the others (EDDP's check).",
    },
    "explanation": {
        "contribution": "The change of the class's logit when the concept's component, along its signal vector, is set to its mean over the data. Orange: for "
        "the class, blue: against it. Only differences between the classes' logits change probabilities: hence the second sum.",
        "read with care": "Said where more of the logit, or of its difference to the other class's, is in none of these directions than in any of them, "
        "where a large contribution or a change is of a direction that fewer than half of the refits on other images contain, and where the evaluation "
        "found that contributions rebuild logits poorly.",
        "little": "The image has less of the concept than images have on average. Its absence counts as well.",
        "wheel 2 (12)": "The second of the directions called wheel; in brackets its number in the directions file.",
        "direction 12": "A direction without a label that fits is called by its number. A name of your own goes into names.csv next to the directions file.",
        "average image": "The class's logit where every position holds the data's mean.",
        "heat maps": "What the concept adds to the explained class's logit at each position (signal value times the logit's slope along the signal vector), "
        "paler where it adds little. The yellow line surrounds where the detector fires.",
        "fires on 10 %": "The share of positions where the detector is above its threshold. A contribution is the mean of signal values over all positions: "
        "it may be large where the detector fires on few of them, or on none.",
        "Grad-CAM": "Where the class is seen at this layer, whatever the concept (Selvaraju et al. 2017).",
        "what would make it": "Few changes of mean signal values that change the prediction, within the range of 99 % of the store's images where such a "
        "change is found; run through the model's own head. It says what the head reads, not what a changed photograph would give.",
    },
    "affine head": {
        "no concept": "The part of the class's logit that none of these directions explains."
    },
    "other head": {
        "interaction": "What is left of the class's logit when every concept's contribution, measured individually, is subtracted: what concepts do together, "
        "and what none of these directions explains."
    },
    "joint values": {"signal values": "Read by all filters jointly, so that what several filters share is counted once."},
    "paper values": {"signal values": "Read by each filter individually: what several filters share is counted several times."},
    "tokens": {
        "class token": "Tokens that have no place on the image (class and register tokens) are left as they are, in the average image, in contributions "
        "and in changes. What a concept did to them before this layer is not seen here."
    },
}  # fmt: skip


def definitions(*parts: str) -> dict[str, str]:
    """Term -> definition of the terms of some of ``PARTS``."""
    return {term: text for part in parts for term, text in PARTS[part].items()}
