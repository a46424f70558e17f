"""EDDP in the steps that its paper published, and the methods whose first step it is: UIBE and CBE."""

from __future__ import annotations

from fit.paper.config import CBEConfig, PaperConfig, StepSettings, UIBEConfig
from fit.paper.method import CBE, UIBE, PaperEDDP

__all__ = ["CBE", "UIBE", "CBEConfig", "PaperConfig", "PaperEDDP", "StepSettings", "UIBEConfig"]
