"""What a drawing needs of an architecture file: widths, strides and the types of the blocks.

`Architecture` itself refuses a block type that nobody registered in this process. An outline reads it too, so that a
report with somebody's own block can be redrawn without that block's code.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from analysis.files import FileRecord
from supernet.architecture import grids_of


class BlockOutline(FileRecord):
    """A block as a drawing needs it: the name of its type, which need not be registered here."""

    type: str


class DownsamplingOutline(FileRecord):
    """The stride with which a stage opens."""

    stride: Annotated[int, Field(gt=0)]


class StemOutline(FileRecord):
    """Width and strides of the stem."""

    width_channels: Annotated[int, Field(gt=0)]
    strides: tuple[int, int]


class StageOutline(FileRecord):
    """Width, downsampling and block types of a stage."""

    width_channels: Annotated[int, Field(gt=0)]
    downsampling: DownsamplingOutline | None
    blocks: tuple[BlockOutline, ...]


class ArchitectureOutline(FileRecord):
    """What a drawing shows of an architecture file. Unlike `Architecture` it also reads unregistered block types."""

    schema_version: Literal[1]
    resolution_px: tuple[int, int]
    stem: StemOutline
    stages: Annotated[tuple[StageOutline, ...], Field(min_length=1)]

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the feature map in every stage."""
        strides = [1 if stage.downsampling is None else stage.downsampling.stride for stage in self.stages]
        return grids_of(self.resolution_px, stem_strides=self.stem.strides, stage_strides=strides)
