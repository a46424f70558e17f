"""A small drawn world: scenes of labelled things, in Broden's format, with one planted spurious mark.

``surfaces`` (colours, textures) and ``canvas`` (picture and labels in one) → ``things`` → ``scenes`` → ``build`` (files).
"""

from pipeline.world.build import World, build_world
from pipeline.world.scenes import MARKED_SCENE, SCENES, WATERMARK

__all__ = ["MARKED_SCENE", "SCENES", "WATERMARK", "World", "build_world"]
