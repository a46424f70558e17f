"""The data dictionary: what every column of every table and every key of summary.json holds, written next to them.

``TABLES`` defines tables, and the columns that are particular to one; those with one meaning in every table are in ``glossary.COMMON``,
measures of a set in ``glossary.MEASURES``. ``check`` names what has no definition: a test lets no table out without them. To it,
summary.json is a table, whose columns are ``summary_keys``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from evaluate.glossary import (
    BAU,
    CLIP_DISSECT,
    COMMON,
    EDDP,
    INVERT,
    MEASURES,
    NEURONEVAL,
    RCAV,
    SEMANTIC_LENS,
    SIGNIFICANT,
    SURF,
    VAL,
    Term,
)
from stores.io import write_atomically, write_json


@dataclass(frozen=True)
class Table:
    """A table: what a row of it is, and its columns, without the common ones."""

    rows: str
    columns: Mapping[str, Term] = field(default_factory=dict)


_INTERVALS = {
    f"{m.key}_{end}": Term("number", m.entry.unit, f"{word} end of the confidence interval of {m.key}.")
    for m in MEASURES
    for end, word in (("low", "Lower"), ("high", "Upper"))
}
_ALIKE = {
    f"{measure}{part}": Term("number", "share" if part in ("_kappa", "_share") else unit, text.format(what))
    for measure, unit, what, above in (
        ("detector_iou", "IoU", "IoU of the positions on which detectors fire", 0.5),
        ("logit_correlation", "correlation", "|correlation| of logits over the data", 0.9),
        ("signal_cos", "cosine", "|cos| of signal vectors", 0.9),
    )
    for part, text in (
        ("", "Mean {} over the pairs."),
        ("_chance", "Mean {} of a file matched with itself, no direction with itself: what pairs have by chance."),
        ("_kappa", "(matched - chance) / (1 - chance) of {}."),
        ("_share", f"Share of pairs with {{}} above {above}."),
    )
}

_SCORE = Term(
    "number", "", "Influence score 2·r − 1, in [−1, 1]; r: share of the images whose probability of the class does not fall. 0 for a direction that moves nothing.", RCAV
)  # fmt: skip
_CHANGE = Term("number", "probability", "Mean change of the class's probability over the images.")
_RELATIVE = Term(
    "number",
    "typical distances",
    "alpha over the root mean square distance of the layer's activations from their mean.",
)
_OF_CATEGORY = {
    "distinct": Term("integer", "labels", "Different labels of the category among the interpretable directions.", BAU),
    "detectors": Term("integer", "directions", "Interpretable directions with a label of the category.", BAU),
}  # fmt: skip
_STRENGTH = Term("number", "activation", "k of the correction x − k·sigmoid(z − shift)·v, v of unit norm.", EDDP)
_SHIFT = Term("number", "logit", "How much the detector's threshold is raised; 0 in the paper.")
_SET = Term("string", "", "clean: images without the concept; poisoned: images with it.", EDDP)
_DRAWN = {"signal": "the signal vector", "filter": "the filter", "random": "random directions (median)"}

SUMMARY = "summary.json"
_FILE = "directions.FILE"
# keys that vary: those below each of these go by the name in capitals
_VARYING = {
    "directions": "FILE",
    "made_from.directions": "FILE",
    "made_from.digests": "FILE",
    f"{_FILE}.per_category": "CATEGORY",
    f"{_FILE}.influence.signal": "ALPHA",
    f"{_FILE}.influence.filter": "ALPHA",
}
_BY_MEASURE = {m.key: m.entry for m in MEASURES}


def _of_step(vectors: str) -> dict[str, Term]:
    """What a summary has of every role and step; ``vectors`` are those of the role."""

    def counts(unit: str, what: str) -> dict[str, Term]:
        words = {"mean": "Mean number", "min": "Smallest number", "max": "Largest number"}
        return {
            end: Term("number" if end == "mean" else "integer", unit, f"{word} of {what}.")
            for end, word in words.items()
        }

    pairs, some = f"Pairs of {vectors} and class", f"{vectors.capitalize()}s with at least one class"
    return {
        "significant": Term("integer", "pairs", f"{pairs} with significant in the table influence."),
        "significant_directions": Term("integer", "directions", f"{some} with significant in the table influence."),
        "sdc": Term("integer", "directions", f"{some} with significant_paper in the table influence.", EDDP),
        **{f"sdc_{rule}": Term("integer", "directions", f"{some} with significant_{rule} in the table influence.")
           for rule in ("bh", "t", "max", "random")},
        "scdp": Term("integer", "pairs", f"{pairs} with significant_paper in the table influence.", EDDP),
        **{f"significant_{rule}": Term("integer", "pairs", f"{pairs} with significant_{rule} in the table influence.")
           for rule in ("bh", "holm", "t", "max", "random")},
        "mean_absolute_probability_change": Term("number", "probability", f"Mean |probability_change| over all pairs of {vectors} and class."),
        "largest_probability_change": Term("number", "probability", f"Largest |probability_change| of each {vectors} over the classes, mean over the {vectors}s."),
        "directions_raising": Term("integer", "directions", f"{vectors.capitalize()}s that raise the probability of at least one class significantly."),
        "directions_lowering": Term("integer", "directions", f"{vectors.capitalize()}s that lower the probability of at least one class significantly."),
        "classes_raised": Term("integer", "classes", f"Classes whose probability at least one {vectors} raises significantly."),
        "classes_lowered": Term("integer", "classes", f"Classes whose probability at least one {vectors} lowers significantly."),
        **{f"classes_per_direction.{end}": term for end, term in counts("classes", f"significant classes of a {vectors}").items()},
        **{f"directions_per_class.{end}": term for end, term in counts("directions", f"significant {vectors}s of a class").items()},
    }  # fmt: skip


_INFLUENCE = {
    "alpha": Term("number", "activation", "Length of the step that the set's counts, s3, the table influence_classes and the suspects are about.", RCAV),
    "alpha_relative": _RELATIVE,
    "images": Term("integer", "images", "Images that were moved."),
    "through": Term("string", "", "How the effect of a step was computed: by pooling and an affine map, or through the model's own head."),
    "classes": Term("integer", "classes", "Classes of the model."),
    "nulls": Term("integer", "directions", "Null directions of each detector, where it has positives enough to train them."),
    "null_precision": Term("string", "", "Floating-point type in which null directions were trained."),
    "randoms": Term("integer", "directions", "Random directions, uniform on the sphere."),
    "directions_without_nulls": Term("integer", "directions", "Directions whose positives were too few to train null directions."),
    "level": Term("number", "probability", "Level of significance, 0.05 unless set otherwise."),
    **{f"{role}.ALPHA.{key}": term for role, words in (("signal", "signal vector"), ("filter", "filter")) for key, term in _of_step(words).items()},
    **{f"steering.{role}.{key}": Term("number", unit, text.format(words))
       for role, words in (("signal", "signal vectors"), ("filter", "filters"), ("random", "random directions"))
       for key, unit, text in (
           ("monotone_up_to", "activation", "Median of monotone_up_to in the table steering, over the {}."),
           ("probability_gained", "probability", "Largest probability of the followed class along the steps, less the one without a step; mean over the {}."),
       )},
    "strongest": Term("object", "", "The first at most five rows of the table influence_directions that are about signal vectors at this step and have a strongest_class."),
    "s3_probability": Term("number", "share", "As s3, with changes of probability in the place of scores."),
    "suspects": Term("object", "", "The first ten rows of the table suspects; indices is a list of numbers."),
    "suspects_tested.labels": Term("integer", "labels", "Labels that the directions carry."),
    "suspects_tested.small": Term("integer", "labels", "Of these, labels of at most 10 % of an image on at least 5 images: these can be suspects of one class."),
}  # fmt: skip
_FIDELITY = {
    "images": Term("integer", "images", "Images, drawn from the store, whose logits are rebuilt."),
    "classes": Term("integer", "classes", "Classes of the model."),
    "draws": Term("integer", "sets", "Sets of random concepts: as many normal filters as the file has directions, with their Haufe patterns as signal vectors."),
    **{f"{error}.{key}": Term(*entry) for error, what, source in (
           ("mae", "Mean absolute error, over images and classes, of the logits rebuilt as base + contributions", SURF),
           ("emd", "Earth mover's distance between the distributions over the images of a class's logit, the model's and the rebuilt one; mean over classes", SURF),
       ) for key, *entry in (
           ("value", "number", "logit", f"{what}.", source),
           ("p", "number", "probability", f"(b + 1) / (N + 1), b of N sets of random concepts with {error} no larger."),
           ("random", "number", "logit", f"Mean {error} of the sets of random concepts."),
           ("random_low", "number", "logit", f"Smallest {error} of them: of 39, lower end of a 95 % interval for one more."),
           ("random_high", "number", "logit", f"Largest {error} of them."),
           ("constant", "number", "logit", f"The {error} of no directions: every image has the logits of the mean activation."),
       )},
}  # fmt: skip
_CLASS_LABELS = {
    "source": Term("string", "", "Where the images' classes are from: labels or predictions of the model."),
    "images": Term("integer", "images", "Images with a class, of both halves; frames and views of a video are one."),
    "significant": Term("number", "share", "Share of directions with significant in the table class_labels."),
    "auroc": Term("number", "share", "Mean auroc over the directions.", INVERT),
    "auroc_low": Term("number", "share", "Lower end of the 95 % interval of that mean, from 200 Poisson bootstrap replicates of the images."),
    "auroc_high": Term("number", "share", "Upper end of that interval."),
    "randoms": Term("integer", "directions", "Random directions that were labelled by the same search."),
    "auroc_random": Term("number", "share", "Mean auroc of these."),
    "median_reached": Term("number", "share", "Share of these whose auroc reaches the median of the file's directions. Where it is large, classes are apart along most directions, and few labels are significant."),
    "raising": Term("integer", "directions", "Directions whose signal vector raises a class significantly."),
    "agree": Term("number", "share", "Share of these with agree in the table class_labels."),
    "agree_others": Term("number", "share", "The same with the filters of all other directions in the place of their own: what to expect of pairs that do not belong together."),
    "agree_p": Term("number", "probability", "(b + 1) / 1000, b of 999 permutations of the filters among the directions of the file with a share as large."),
}  # fmt: skip
_MEANING = {
    "encoder": Term("string", "", "Image encoder, as --encoder named it."),
    "images": Term("integer", "images", "Examples of each direction: its strongest images, cut to where it fires."),
    "randoms": Term("integer", "directions", "Random directions whose examples are measured, too."),
    "seed": Term("integer", "", "Seed of the random directions and images."),
    **{f"{key}.{part}": Term(kind, unit or COMMON[key].unit, text.format(key))
       for key in ("firing_monosemanticity", "clarity", "polysemanticity", "semantic_redundancy")
       for part, kind, unit, text in (
           ("random", "number", "", "Mean {} of random directions."),
           ("random_low", "number", "", "Lower end of the range that holds {} of 95 % of the random directions."),
           ("random_high", "number", "", "Upper end of that range."),
           ("random_images", "number", "", "Mean {} of sets of as many parts of random images, as large and in the same places as the examples."),
           ("beyond", "integer", "directions", "Directions that are better than this range: by chance 2.5 % are."),
       )},
}  # fmt: skip
_OF_DISSECTION = {
    **{key: _BY_MEASURE[key] for key in ("s1", "s2", "interpretable", "distinct", "coverage", "precision", "recall", "f1", "average_precision")},
    **{f"intervals.{key}": Term("number", _BY_MEASURE[key].unit, f"Lower and upper end of the 95 % interval of {key}, from 200 Poisson bootstrap replicates of the val split's images.")
       for key in ("s1", "s2", "interpretable", "distinct", "precision", "recall", "f1")},
}  # fmt: skip
_OF_FILE = {
    "method": COMMON["method"],
    "directions": Term("integer", "directions", "Directions in the file."),
    "fitted_on": Term("string", "", "Store and images that the directions were fitted on."),
    **_BY_MEASURE,
    **_OF_DISSECTION,
    **{f"per_category.CATEGORY.{key}": term for key, term in _OF_CATEGORY.items()},
    **{f"supervised_thresholds.{key}": Term("number", unit, f"{what} at threshold_supervised of the table directions, {VAL}; {over}.", EDDP)
       for key, unit, what, over in (
           *((key, "share", f"Mean {word}", "over directions that are interpretable at their own threshold")
             for key, word in (("iou", "IoU"), ("precision", "precision"), ("recall", "recall"), ("f1", "F1"))),
           ("s1", "", "Sum of the IoUs", "over all directions"),
           ("s2", "", "Sum of the best IoU of each label", "over distinct labels"),
       )},
    "union.labels": Term("integer", "labels", f"Labels whose union of detectors has an IoU above 0.04, {VAL}.", EDDP),
    **{f"union.{key}": Term("number", "share", f"Mean {key} in the table unions, over labels whose union has an IoU above 0.04.", EDDP)
       for key in ("iou", "precision", "recall", "f1")},
    "union.s2": Term("number", "", "Sum of the IoUs in the table unions, over all labels.", EDDP),
    **{f"untrained.{key}": replace(term, definition=f"Of as many directions of an untrained network of the same architecture, by the same method: {term.definition}")
       for key, term in _OF_DISSECTION.items()},
    **{f"pairs.{key}": Term(*entry) for key, *entry in (
           ("attributes", "integer", "attributes", "Attributes with pairs of images."),
           ("count", "integer", "pairs", "Pairs of images."),
           ("named", "integer", "directions", "Directions named after an attribute."),
           ("moving", "integer", "directions", "Directions that move with an attribute (table pairs)."),
           ("agreeing", "integer", "directions", "Directions that move with the attribute they are named after."),
           ("p", "number", "probability", "(b + 1) / (N + 1), b of N shuffles of the names among the directions with at least as many agreeing."),
           ("precision", "number", "share", "agreeing over named; null without any."),
           ("recall", "number", "share", "agreeing over moving; null without any."),
           *((f"{key}_{end}", "number", "share", f"{word} end of the 95 % interval of {key} (Wilson).")
             for key in ("precision", "recall") for end, word in (("low", "Lower"), ("high", "Upper"))),
       )},
    **{f"label_tests.{test}.{metric}": Term("number", "share", f"Column holds of the table label_tests: share of directions whose {metric} falls when labels are {words}.", NEURONEVAL)
       for test, words in (("missing", "missing"), ("extra", "added")) for metric in ("iou", "f1", "average_precision", "precision", "recall", "auroc")},
    "monosemanticity_baseline": Term("number", "cosine", "Mean cosine of the embeddings over all pairs of images: the score of a direction with the same activation on all of them."),
    "monosemanticity_encoder": Term("string", "", "Model and layer that the embeddings are of."),
    **{f"meaning.{key}": term for key, term in _MEANING.items()},
    **{f"vocabulary.{key}": Term(kind, unit, text, source) for key, kind, unit, text, source in (
        ("significant", "integer", "directions", "Directions with significant in the table vocabulary_labels.", "ours"),
        ("encoder", "string", "", "Image-text encoder, as --encoder named it.", "ours"),
        ("words", "integer", "words", "Words that were to choose from.", "ours"),
        ("images", "integer", "images", "Images of each direction that words were chosen and scored on, half for each.", CLIP_DISSECT),
        ("randoms", "integer", "directions", "Random directions that scores are held against.", "ours"),
        ("seed", "integer", "", "Seed of the random directions.", "ours"),
        ("level", "number", "probability", "Level of significance.", "ours"),
    )},
    "autocorrelation": Term("number", "correlation", "Mean of the column autocorrelation of the table of that name."),
    **{f"ground_truth.{key}": Term("number", unit, f"Of each true concept in order: {what} in the table ground_truth.")
       for key, unit, what in (("iou", "share", "iou"), ("cos", "cosine", "cos"), ("filter_cos", "cosine", "filter_cos"))},
    "ground_truth.matched": Term("integer", "concepts", "True concepts that are found: the direction that each is matched with has an IoU above 0.5."),
    "ground_truth.distinct_matches": Term("number", "share", "Share of true concepts whose direction of largest IoU is no other concept's."),
    "ground_truth.rmse": Term("number", "activation", "Root mean square difference of the directions' signal values and the true ones, about their means, over matched concepts and all positions."),
    **{f"influence.{key}": term for key, term in _INFLUENCE.items()},
    **{f"fidelity.{key}": term for key, term in _FIDELITY.items()},
    **{f"class_labels.{key}": term for key, term in _CLASS_LABELS.items()},
}  # fmt: skip
_SUMMARY = {
    "made_by": Term("string", "", "Command that wrote the folder."),
    **{f"{_FILE}.{key}": term for key, term in _OF_FILE.items()},
    "made_from.store": Term("string", "", "Activation store, relative to the folder."),
    "made_from.fingerprint": Term("string", "", "Fingerprint of the store."),
    "made_from.layer": Term("string", "", "Layer that the directions belong to."),
    "made_from.directions.FILE": Term("string", "", "Directions file, relative to the folder."),
    "made_from.digests.FILE": Term(
        "string", "", "SHA-256 of the directions: filters, signal vectors, mean, thresholds."
    ),
    "made_from.concepts": Term("string", "", "Concept dataset, relative to the folder; null without one."),
    "made_from.class_names": Term("string", "", "Names of the classes, in order, where --class-names gave them."),
}

TABLES = {
    "directions": Table("One row a direction: its label, and its scores.", {
        "number": Term("integer", "", "Number of the label in the concept dataset; 0 for none."),
        "images_val": Term("integer", "images", f"Images that show the label, {VAL}."),
        "positions_val": Term("integer", "points", f"Points of the masks (or positions of the layer, with --resolution feature) that carry the label, {VAL}."),
        "iou_low": Term("number", "share", "Lower end of the confidence interval of iou_val."),
        "iou_high": Term("number", "share", "Upper end of the confidence interval of iou_val."),
        "interpretable": Term("boolean", "", "Whether iou_val exceeds 0.04.", BAU),
        "threshold_supervised": Term("number", "logit", "Threshold of the logit refitted with the label: the one of largest IoU on the train split.", EDDP),
        "iou_supervised": Term("number", "share", f"IoU with the label at threshold_supervised, {VAL}.", EDDP),
        "f1_supervised": Term("number", "share", f"F1 at threshold_supervised, {VAL}.", EDDP),
    }),
    "labels": Table("One row a direction and label: the labels of largest IoU on the train split.", {
        "rank": Term("integer", "", "1 for the label of largest IoU on the train split, and so on."),
        "label": Term("string", "", "A label that the direction could carry.", BAU),
        "images_val": Term("integer", "images", f"Images that show the label, {VAL}."),
        "positions_val": Term("integer", "points", f"Points of the masks (or positions of the layer, with --resolution feature) that carry the label, {VAL}."),
        "as_good": Term("boolean", "", "Whether iou_val reaches the confidence interval of the direction's label (rank 1, whose own row is true)."),
    }),
    "categories": Table("One row a file and category.", _OF_CATEGORY),
    "unions": Table("One row a file and label: all detectors that carry it, taken together.", {
        "label": Term("string", "", "Label that the detectors share.", BAU),
        "detectors": Term("integer", "directions", "Directions that carry the label, the union of whose positives is scored.", EDDP),
        "iou": Term("number", "share", f"Intersection over union of the detectors' joint positives and the label, {VAL}.", EDDP),
        "precision": Term("number", "share", f"Share of the joint positives that carry the label, {VAL}.", EDDP),
        "recall": Term("number", "share", f"Share of the label's positions where at least one of the detectors is positive, {VAL}.", EDDP),
    }),
    "label_tests": Table("One row a file, test and score: does the score fall when labels are made wrong?", {
        "test": Term("string", "", "missing: half of the label's positives are taken away, by image; extra: as many false ones are added.", NEURONEVAL),
        "metric": Term("string", "", "Score, as in the table directions; auroc: area under the ROC curve of the detector's logit."),
        "tested": Term("integer", "directions", "Directions whose label occurs in both random halves of val's images, with room for false positives."),
        "holds": Term("number", "share", "Share of them whose score falls by more than 0.001; mean of two runs, one for each half of the images.", NEURONEVAL),
        "holds_low": Term("number", "share", "Lower end of the 95 % interval of holds (Wilson)."),
        "holds_high": Term("number", "share", "Upper end of it."),
        "change": Term("number", "share", "Mean change of the score."),
    }),
    "pairs": Table("One row a direction and attribute: does the direction's logit rise from images without the attribute to the same images with it?", {
        "attribute": Term("string", "", "Attribute: folder of pairs of images."),
        "pairs": Term("integer", "pairs", "Pairs of images of the attribute."),
        "change": Term("number", "logit", "Mean change of the logit, averaged over positions, from the image without the attribute to the one with it."),
        "t": Term("number", "standard errors", "change over its standard error over the pairs."),
        "p": Term("number", "probability", "(b + 1) / (N + 1), b of N sign flips of the pairs in which the largest t of all directions is at least as large (Westfall & Young 1993)."),
        "moves": Term("boolean", "", "The direction moves with the attribute: p is at most 0.05, and no other attribute has a larger t."),
        "named": Term("boolean", "", "The direction's name, without its number, is the attribute."),
    }),
    "ground_truth": Table("One row a file and true concept of a synthetic store, matched one to one by IoU.", {
        "concept": Term("integer", "", "Number of the true concept, from 0."),
        "direction": Term("integer", "", "Number of the direction matched to it; -1 where there are fewer directions than concepts."),
        "iou": Term("number", "share", "Intersection over union of the direction's positives and the positions where the concept is present."),
        "cos": Term("number", "cosine", "Cosine of the direction's signal vector and the true one."),
        "filter_cos": Term("number", "cosine", "Cosine of the direction's filter and the least-squares readout of the true signal values (Haufe et al. 2014)."),
    }),
    "influence": Table("One row a direction, role, step and class: what the step does to the class, and against how many null directions.", {
        "score": _SCORE,
        "logit_change": Term("number", "logit", "Mean change of the class's logit over the images."),
        "probability_change": _CHANGE,
        "significant": Term("boolean", "", f"Both significant_max and significant_random: {SIGNIFICANT}"),
        "p_paper": Term("number", "probability", "Share of the detector's null directions with an absolute score at least as large; 0 where none has.", RCAV),
        "p": Term("number", "probability", "(b + 1) / (N + 1), b of N null directions with an absolute score at least as large (Phipson & Smyth 2010)."),
        "p_holm": Term("number", "probability", "p adjusted for the tests of the file, role and step (Holm 1979)."),
        "q_bh": Term("number", "probability", "p adjusted for the tests of the file, role and step (Benjamini & Hochberg 1995)."),
        "significant_paper": Term("boolean", "", "p_paper is below the level, 0.05 unless set otherwise, over the number of directions · classes.", RCAV),
        "significant_holm": Term("boolean", "", "p_holm is at most the level, 0.05 unless set otherwise. Nothing is with fewer than (directions × classes) / level − 1 null directions."),
        "significant_bh": Term("boolean", "", "q_bh is at most the level, 0.05 unless set otherwise. With N null directions, something is only where at least (directions × classes) / ((N + 1) level) pairs are beyond all of them."),
        "t": Term("number", "standard deviations", "Distance of logit_change (against the mean of all classes') from the mean of the null directions' changes, in their standard deviations; 0 with fewer than three of them."),
        "q_t": Term("number", "probability", "p-value of t (Student, N − 1 degrees of freedom) adjusted for the tests of the file, role and step (Benjamini & Hochberg 1995)."),
        "p_max": Term("number", "probability", "(b + 1) / (N + 1), b of N rounds of permutations whose largest |t| over all directions and classes is at least as large (Westfall & Young 1993); at least 1 / (n + 1), n the direction's null directions."),
        "t_random": Term("number", "standard deviations", "As t, against directions uniform on the sphere."),
        "p_random": Term("number", "probability", "p-value of t_random (Student) adjusted for the tests of the file, role and step (Holm 1979)."),
        "significant_random": Term("boolean", "", "p_random is at most the level, 0.05 unless set otherwise."),
        "significant_t": Term("boolean", "", "q_t is at most the level, 0.05 unless set otherwise."),
        "significant_max": Term("boolean", "", "p_max is at most the level, 0.05 unless set otherwise."),
    }),
    "influence_directions": Table("One row a direction, role and step: on how many classes it acts, and on which most. Of each role and step the direction of largest |strongest_probability_change| first; those without one at the end.", {
        "nulls": Term("integer", "directions", "Null directions of the detector; 0 where its positives were too few to train any."),
        "alpha_relative": _RELATIVE,
        "significant": Term("integer", "classes", "Classes with significant in the table influence."),
        "significant_raised": Term("integer", "classes", "Those of them whose probability rises."),
        "significant_lowered": Term("integer", "classes", "Those of them whose probability falls."),
        "largest_probability_change": Term("number", "probability", "Largest |probability_change| over all classes, whether significant or not."),
        "strongest_class": Term("integer", "", "Class of largest |probability_change| of those with significant in the table influence, from 0; empty where there is none."),
        "strongest_class_name": Term("string", "", "Name of strongest_class."),
        "strongest_score": Term("number", "", "Influence score of strongest_class, in [−1, 1].", RCAV),
        "strongest_probability_change": Term("number", "probability", "Mean change of strongest_class's probability over the images."),
    }),
    "influence_classes": Table("One row a class and signal vector of its concept influence diagram: the at most 10 that raise and lower it most.", {
        "sign": Term("string", "", "positive or negative: whether the signal vector raises the class's probability or lowers it.", EDDP),
        "rank": Term("integer", "", "1 for the largest change of that sign, and so on.", EDDP),
        "score": _SCORE,
        "probability_change": _CHANGE,
        "significant": Term("boolean", "", "As in the table influence."),
    }),
    "suspects": Table("One row a label and class: a concept, small and of only one class or in most images of the class, that raises the class, for a person to look at.", {
        "indices": Term("string", "", "Numbers of the directions that carry the label and raise the class, the one that raises it most first, with spaces between."),
        "name": Term("string", "", "Name of the first of these directions, as in the table directions."),
        "kind": Term("string", "", "'small, of one class': at most 10 % of an image, and at least 90 % of the images that show it are predicted as the class. 'in most images of the class': "
                     "at least 80 % of the images predicted as the class show it, of all images at most half; 'large: may be a background' where it is more than 10 % of an image. Those of the first kind come first."),
        "share_of_class": Term("number", "share", "Share of the images that show the label and are predicted as the class."),
        "share_of_images": Term("number", "share", "Share of the images predicted as the class that show the label, of those annotated in its category."),
        "usual_share": Term("number", "share", "Share of all images that show the label, of those annotated in its category."),
        "images": Term("integer", "images", "Images of the concept dataset that show the label."),
        "area": Term("number", "share", "Mean share of the positions with the label, over images that show it."),
        "probability_change": Term("number", "probability", "Mean change of the class's probability over the images, moved along the signal vector of the first direction."),
        "t_random": Term("number", "standard deviations", "Of the first direction, as in the table influence."),
        "p_random": Term("number", "probability", "Of the first direction, as in the table influence."),
    }),
    "steering": Table("One row a direction, role and step: the probability of the class that the direction is followed for.", {
        "name": Term("string", "", "Name of the direction, as in the table directions; empty for random directions."),
        "class": Term("integer", "", "Class whose probability is followed, from 0."),
        "probability": Term("number", "probability", "Mean probability of the class over the images, all moved by alpha."),
        "monotone_up_to": Term("number", "activation", "Largest alpha up to which the probability never falls."),
    }),
    "stability": Table("One row a pair of files of the same method and layer: how alike their directions are, matched one to one for each measure.", {
        "layer": Term("string", "", "Layer the directions belong to."),
        "first": Term("string", "", "First file of the pair."),
        "second": Term("string", "", "Second file of the pair."),
        "directions_first": Term("integer", "directions", "Directions of the first file."),
        "directions_second": Term("integer", "directions", "Directions of the second file."),
        "matched": Term("integer", "pairs", "Pairs of directions, as many as the smaller file has directions."),
        **_ALIKE,
        "mutual": Term("number", "share", "Share of the first file's directions whose nearest of the second, by logit correlation, has them as its nearest."),
        "nearest_first": Term("number", "correlation", "Mean |correlation| of the first file's directions with the nearest other one of that file: near 1, it has duplicates."),
        "nearest_second": Term("number", "correlation", "The same for the second file."),
        "note": Term("string", "", "What was left out where the files are of different size."),
    }),
    "autocorrelation": Table("One row a direction, of stores of clips or of frames of videos: how steadily it fires from frame to frame.", {
        "autocorrelation": Term("number", "correlation", "Correlation of the direction's logits with those at the same place one step (of the layer, or one frame that is a row) later, over all videos and places; empty where there are no two steps, or where they do not vary."),
    }),
    "class_labels": Table("One row a direction: its label from the classes of images, without masks. The label is chosen on one half of the images and tested on the other.", {
        "label": Term("string", "", "The class, the classes joined by OR (at most three), or NOT these, whose images the direction's mean logit over positions ranks first: of largest AUROC that a beam search of width 5 finds among classes of at least 10 images in each half.", INVERT),
        "auroc": Term("number", "share", "Share of the pairs of an image with the label and one without it in which the first has the larger mean logit, equal ones counted half.", INVERT),
        "auroc_low": Term("number", "share", "Lower end of the 95 % interval of auroc, from 200 Poisson bootstrap replicates of the images; the label stays."),
        "auroc_high": Term("number", "share", "Upper end of that interval."),
        "p": Term("number", "probability", "Mann-Whitney, one-sided, normal approximation with ties: of an auroc as large where logits and classes have nothing to do with each other.", INVERT),
        "p_random": Term("number", "probability", "(b + 1) / (R + 1), b of R random directions, uniform on the sphere and labelled by the same search, with an auroc as large."),
        "q": Term("number", "probability", "The larger of p and p_random, adjusted for the directions of the file (Benjamini & Hochberg 1995)."),
        "significant": Term("boolean", "", "Whether q is at most 0.05."),
        "raised": Term("string", "", "The at most three classes that the signal vector raises most of those with significant in the table influence, at the summary's step, with semicolons between. This column, agree and overlap are there with --influence only.", EDDP),
        "fires": Term("string", "", "The most frequent classes (labels, or predictions where these are no classes of the model) of the 20 images of largest mean logit, at most three."),
        "agree": Term("boolean", "", "Whether the first of raised is the first of fires; empty where nothing is raised."),
        "overlap": Term("number", "share", "Share of raised that is in fires; empty where nothing is raised."),
    }),
    "vocabulary_labels": Table("One row a direction: the word of a list that fits best what it fires on, chosen on half of its images and scored on the others.", {
        "word": Term("string", "", "Word of largest score on the images it is chosen on.", CLIP_DISSECT),
        "score": Term("number", "standard deviations", "How far the word's evidence (soft-WPMI) in the direction's other images is above its mean in those of random directions; their standard deviation and the mean one of all words together are the unit.", CLIP_DISSECT),
        "cosine": Term("number", "cosine", "Mean cosine of the word's embedding and those of what the direction fires on in the other images."),
        "p": Term("number", "probability", "(b + 1) / (N + 1), b of N random directions whose own word has a score at least as large."),
        "q_bh": Term("number", "probability", "p adjusted for the directions of the file (Benjamini & Hochberg 1995)."),
        "significant": Term("boolean", "", "q_bh is at most 0.05."),
        "second": Term("string", "", "Word of the second largest score on the images it is chosen on; empty for none."),
        "third": Term("string", "", "Word of the third largest; empty for none."),
    }),
    "meaning": Table("One row a direction: how much its examples (its strongest images, cut to where it fires) are of one thing, to an image encoder.", {
        "nearest": Term("integer", "", "Direction of the file whose examples' mean embedding is most like this one's; empty where there is none.", SEMANTIC_LENS),
    }),
    "comparison": Table("One row a file: its entry in summary.json.", {
        "supervised": Term("boolean", "", "Whether the method knew the labels it is scored on; such a file does not compete."),
        "best": Term("string", "", "Columns in which the file is the best of those that compete, with spaces between."),
        **{m.key: m.entry for m in MEASURES},
        **_INTERVALS,
    }),
    "visualization": Table("One row a direction pair of which pictures were synthesised: what its own detector makes of them.", {
        **{f"response_{role}": Term("number", "logit", f"Mean logit of the detector over the layer's positions in the picture synthesised along {what}.", EDDP)
           for role, what in _DRAWN.items()},
        **{f"fires_{role}": Term("number", "share", f"Share of positions where the detector is positive in the picture synthesised along {what}.", EDDP)
           for role, what in _DRAWN.items()},
        "beyond_random": Term("number", "share", "Share of the random directions' pictures to which the detector responds less than to the signal vector's."),
    }),
    "correction": Table("One row a vector, setting and set of images: what taking the vector out of the activations does to accuracy.", {
        "vector": Term("string", "", "What is taken out where the detector is positive: none, the signal vector, the filter, or a random direction.", EDDP),
        "draw": Term("integer", "", "Number of the random direction, from 0; empty for the others."),
        "setting": Term("string", "", "own: strength and shift that suit the vector best on held-out images; signal: those of the signal vector."),
        "strength": _STRENGTH,
        "shift": _SHIFT,
        "set": _SET,
        "images": Term("integer", "images", "Images the accuracy is of, none of them held out."),
        "accuracy": Term("number", "share", "Share of these images that are predicted right."),
    }),
    "correction_strengths": Table("One row a vector, strength and shift that were tried on the held-out images.", {
        "vector": Term("string", "", "signal, filter or random."),
        "draw": Term("integer", "", "Number of the random direction, from 0; empty for the others."),
        "strength": _STRENGTH,
        "shift": _SHIFT,
        **{f"accuracy_{which}{end}": Term("number", "share", f"{what} of the held-out {which} images that are predicted right{more}.")
           for which, more in (("clean", ""), ("poisoned", "; empty without such images"))
           for end, what in (("", "Share"), ("_low", "Lower end of the 95 % interval of the share"), ("_high", "Upper end of the 95 % interval of the share"))},
        "chosen": Term("boolean", "", "Whether this setting was chosen for the vector."),
    }),
    "correction_classes": Table("One row a set of images and class, of the images that were not held out.", {
        "set": _SET,
        "images": Term("integer", "images", "Images of the class."),
        "before": Term("number", "share", "Share of them that is predicted right without the correction."),
        "after": Term("number", "share", "Share of them that is predicted right with it."),
    }),
    "correction_confusion": Table("One row a set of images, before or after, class and prediction that occur together, of the images that were not held out.", {
        "set": _SET,
        "when": Term("string", "", "before or after the correction."),
        "predicted": Term("integer", "", "Class that the images are predicted as, from 0."),
        "predicted_name": Term("string", "", "Name of the class in predicted."),
        "images": Term("integer", "images", "Images of the class that are predicted as that one."),
    }),
    "correction_probabilities": Table("Of images without labels: one row a set of images and class, of the images that were not held out.", {
        "set": Term("string", "", f"{_SET.definition} Without --poisoned: detected: images where a detector fires; other: the others.", EDDP),
        "images": Term("integer", "images", "Images of the set."),
        "before": Term("number", "probability", "Mean probability of the class without the correction."),
        "after": Term("number", "probability", "Mean probability of the class with it."),
        "change": Term("number", "probability", "after − before."),
        "half_width": Term("number", "probability", "Half the width of the 95 % interval of change."),
    }),
    SUMMARY: Table("One row a key, dots between a key and those inside it; capitals stand for names that vary. Lists have the type of their elements.", _SUMMARY),
}  # fmt: skip


def summary_keys(summary: Mapping[str, Any]) -> list[str]:
    """The keys that the data dictionary defines of a summary, in order: ``directions.FILE.s1``."""

    def within(value: Any, key: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield key
            return
        for inner, one in value.items():
            yield from within(one, ".".join(filter(None, (key, _VARYING.get(key, inner)))))

    return list(dict.fromkeys(within(summary, "")))


def entry_of(table: str, column: str) -> Term | None:
    """The definition of a table's column, None where there is none."""
    return TABLES[table].columns.get(column, COMMON.get(column)) if table in TABLES else None


def kinds_of(table: str, columns: Iterable[str]) -> dict[str, str]:
    """The types of a table's columns. Raises KeyError for one without a definition."""
    return {column: (TABLES[table].columns.get(column) or COMMON[column]).type for column in columns}


def check(tables: Mapping[str, Iterable[str]]) -> list[str]:
    """Columns without a definition, as ``table.column``, of tables given as name -> columns (or a dict keyed by them)."""
    return [
        f"{table}.{column}" for table, columns in tables.items() for column in columns if not entry_of(table, column)
    ]


def write_dictionary(folder: Path, tables: Mapping[str, Iterable[str]]) -> list[Path]:
    """Write ``dictionary.json`` and ``dictionary.csv`` on the tables of a folder, columns in their order; returns their paths.

    Parameters
    ----------
    tables : name -> columns (or the table itself, a dict keyed by them).

    Raises ValueError naming every column without a definition.
    """
    tables = {table: list(columns) for table, columns in tables.items()}
    if undefined := check(tables):
        raise ValueError(f"Without a definition in evaluate/dictionary.py: {', '.join(undefined)}.")
    found = {
        table: {column: asdict(entry) for column in columns if (entry := entry_of(table, column))}
        for table, columns in tables.items()
    }
    document = {table: {"rows": TABLES[table].rows, "columns": columns} for table, columns in found.items()}
    write_json(folder / "dictionary.json", document)
    lines = [{"table": t, "column": c, **values} for t, columns in found.items() for c, values in columns.items()]
    names = ("table", "column", "type", "unit", "definition", "source")
    buffer = io.BytesIO()
    schema = pa.schema([(name, pa.string()) for name in names])
    pyarrow.csv.write_csv(pa.Table.from_pylist(lines, schema), buffer)
    write_atomically(folder / "dictionary.csv", buffer.getvalue())
    return [folder / "dictionary.json", folder / "dictionary.csv"]
