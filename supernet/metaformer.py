"""MetaFormer: the standalone model of an Architecture."""

# B batch, C channels, H W pixels, N tokens

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from supernet.architecture import Architecture, Identity
from supernet.blocks import build_block
from supernet.stem import DownsamplingModule, HeadModule, StemModule


class MetaFormerStage(nn.Module):
    """An optional downsampling and the stage's blocks; skipped positions keep their number, and cost nothing.

    The map is flattened once, before the first token block, and folded back once, before the next map block.
    """

    def __init__(
        self, blocks: list[nn.Module], layouts: Sequence[str], downsampling: nn.Module | None, *, fold: bool
    ) -> None:
        super().__init__()
        self.fold = fold
        self.downsampling = downsampling
        self.blocks = nn.ModuleList(blocks)
        self.layouts = tuple(layouts)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """A map B,C,H,W to a map of the stage's width and grid; without `fold`, to tokens if it ends with them."""
        if self.downsampling is not None:
            x_BCHW = self.downsampling(x_BCHW)
        x, grid = x_BCHW, x_BCHW.shape[2:]
        layout = "map"
        for block, wanted in zip(self.blocks, self.layouts, strict=True):
            if isinstance(block, nn.Identity):
                continue
            if wanted != layout:
                x = to_tokens(x) if wanted == "tokens" else to_map(x, grid[0], grid[1])
                layout = wanted
            x = block(x)
        return to_map(x, grid[0], grid[1]) if self.fold and layout == "tokens" else x


def to_tokens(x_BCHW: Tensor) -> Tensor:
    """B,C,H,W to B,N,C, row by row; a view where the map is channels_last."""
    return x_BCHW.flatten(2).transpose(1, 2)


def to_map(x_BNC: Tensor, height: int, width: int) -> Tensor:
    """B,N,C to B,C,H,W, a view in channels_last order."""
    return x_BNC.transpose(1, 2).reshape(x_BNC.shape[0], -1, height, width)


class MetaFormer(nn.Module):
    """The standalone model of an `Architecture`: images B,C,H,W to logits B,classes.

    `drop_path_rate` is the last block's; the others follow linearly from 0 over the blocks that compute something.
    With a distillation head it returns two logits while training, and their average otherwise.
    """

    def __init__(self, architecture: Architecture, *, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.architecture = architecture
        self.stem = StemModule(architecture.stem, in_channels=architecture.in_channels)
        self.stages = nn.ModuleList()
        width, index = architecture.stem.width_channels, 0
        for stage, grid in zip(architecture.stages, architecture.grids, strict=True):
            blocks = []
            for block in stage.blocks:
                drop_path = drop_path_rate * index / max(1, architecture.depth - 1)
                blocks.append(build_block(block, width_channels=stage.width_channels, grid=grid, drop_path=drop_path))
                index += not isinstance(block, Identity)
            downsampling = None
            if stage.downsampling is not None:
                downsampling = DownsamplingModule(
                    stage.downsampling, in_channels=width, out_channels=stage.width_channels
                )
            layouts = [block.layout for block in stage.blocks]
            last = stage is architecture.stages[-1]
            self.stages.append(MetaFormerStage(blocks, layouts, downsampling, fold=not last))
            width = stage.width_channels
        self.head = HeadModule(architecture.head, width_channels=width)

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images B,C,H,W of the architecture's resolution to logits."""
        x = self.stem(images_BCHW)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)  # type: ignore[no-any-return]
