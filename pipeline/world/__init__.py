"""A small drawn world: scenes of labelled things, in Broden's format, with one planted spurious mark.

``surfaces`` (colours, materials, textures) and ``canvas`` (picture and labels in one) are what everything is painted
with; ``buildings``, ``nature``, ``vehicles`` and ``mark`` draw things, ``weather`` and ``grounds`` what surrounds
them; ``scenes`` composes; ``broden_writer`` and ``build`` put it on disk.
"""

from pipeline.world.build import World, build_world, read_world
from pipeline.world.scene_labels import MARKED_SCENE, SCENES, WATERMARK

__all__ = ["MARKED_SCENE", "SCENES", "WATERMARK", "World", "build_world", "read_world"]
