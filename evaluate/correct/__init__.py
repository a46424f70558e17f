"""A concept taken out of a model: ``Correction`` is what is saved and applied, ``study_correction`` chooses and judges it."""

from evaluate.correct.correction import Correction, CorrectionError
from evaluate.correct.correction_study import CorrectConfig, Study, study_correction
from evaluate.correct.hooks import Corrected

__all__ = ["CorrectConfig", "Corrected", "Correction", "CorrectionError", "Study", "study_correction"]
