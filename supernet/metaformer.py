"""MetaFormer: the standalone model of an Architecture."""

# B batch, C channels, H W pixels, N tokens

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from supernet.architecture import Architecture
from supernet.block_types import Identity
from supernet.blocks import build_block
from supernet.schema import UserError, write_atomically
from supernet.stem import HeadModule, build_downsampling, build_stem


class MetaFormerStage(nn.Module):
    """An optional downsampling and the stage's blocks; skipped positions keep their number, and compute nothing.

    The map is flattened once, before the first token block, and folded back once, before the next map block.
    """

    def __init__(
        self, blocks: list[nn.Module], layouts: Sequence[str], downsampling: nn.Module | None, *, to_head: bool
    ) -> None:
        super().__init__()
        self.to_head = to_head
        self.downsampling = downsampling
        self.blocks = nn.ModuleList(blocks)
        found = ["map"]
        for block, wanted in zip(blocks, layouts, strict=True):
            found.append(found[-1] if isinstance(block, nn.Identity) else wanted)
        self.layouts = found[1:]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """A map B,C,H,W to a map of the stage's width and grid, or to tokens B,N,C before a head."""
        if self.downsampling is not None:
            x_BCHW = self.downsampling(x_BCHW)
        x, grid = x_BCHW, x_BCHW.shape[2:]
        layout = "map"
        for position, block in enumerate(self.blocks):
            wanted = self.layouts[position]
            if wanted != layout:
                x = to_tokens(x) if wanted == "tokens" else to_map(x, grid[0], grid[1])
                layout = wanted
            x = block(x)
        if self.to_head:
            return x if layout == "tokens" else to_tokens(x)
        return x if layout == "map" else to_map(x, grid[0], grid[1])


def to_tokens(x_BCHW: Tensor) -> Tensor:
    """B,C,H,W to B,N,C, row by row; a view where the map is channels_last."""
    return x_BCHW.flatten(2).transpose(1, 2)


def to_map(x_BNC: Tensor, height: int, width: int) -> Tensor:
    """B,N,C to B,C,H,W, a view in channels_last order."""
    return x_BNC.transpose(1, 2).reshape(x_BNC.shape[0], -1, height, width)


class MetaFormer(nn.Module):
    """The standalone model of an `Architecture`: images B,C,H,W to logits B,classes.

    `drop_path_rate` is the last block's; the others follow linearly from 0 over the blocks that compute something.
    `head_dropout` is before the last linear map. With a distillation head it returns two logits while training, and
    their average otherwise.
    """

    is_fused = False

    def __init__(self, architecture: Architecture, *, drop_path_rate: float = 0.0, head_dropout: float = 0.0) -> None:
        super().__init__()
        self.architecture = architecture
        self.stem = build_stem(architecture.stem, in_channels=architecture.in_channels)
        self.stages = nn.ModuleList()
        width, index = architecture.stem.width_channels, 0
        before = architecture.stem.grid(architecture.resolution_px)
        for stage, grid in zip(architecture.stages, architecture.grids, strict=True):
            blocks = []
            for block in stage.blocks:
                drop_path = drop_path_rate * index / max(1, architecture.depth - 1)
                blocks.append(build_block(block, width_channels=stage.width_channels, grid=grid, drop_path=drop_path))
                index += not isinstance(block, Identity)
            downsampling = None
            if stage.downsampling is not None:
                downsampling = build_downsampling(
                    stage.downsampling, in_channels=width, out_channels=stage.width_channels, grid=before
                )
            layouts = [block.layout for block in stage.blocks]
            last = stage is architecture.stages[-1]
            self.stages.append(MetaFormerStage(blocks, layouts, downsampling, to_head=last))
            width, before = stage.width_channels, grid
        self.head = HeadModule(architecture.head, width_channels=width, dropout=head_dropout)

    def fused(self) -> MetaFormer:
        """The deploy form: a copy in evaluation mode with everything folded that is constant at inference.

        It computes on channels_last maps, whatever its images are, unless it has depthwise convolutions (one AVX2 core:
        0.77 of the time for efficientformer_l1 and poolformer_s12, 1.05 of it for EfficientFormerV2, which has them).
        """
        from supernet.fused import fused  # it knows all modules, this one among them

        deployed = fused(self)
        deployed.is_fused = True
        if not any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in deployed.modules()):
            deployed.to(memory_format=torch.channels_last)
        return deployed

    def save_pretrained(self, directory: Path | str) -> None:
        """Write `config.json` (the architecture) and `model.safetensors`, the layout of model hubs."""
        if self.is_fused:
            raise ValueError("the deploy form has other tensors than its architecture; save the model it was made of")
        directory = Path(directory)
        self.architecture.save(directory / "config.json")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(directory / "model.safetensors", to_bytes(tensors, metadata={"format": "pt"}))

    @classmethod
    def from_pretrained(cls, directory: Path | str, *, drop_path_rate: float = 0.0) -> MetaFormer:
        """The model that `save_pretrained` wrote, in evaluation mode. Raises `UserError` for a spoilt folder."""
        directory = Path(directory)
        model = cls(Architecture.load(directory / "config.json"), drop_path_rate=drop_path_rate)
        path = directory / "model.safetensors"
        try:
            model.load_state_dict(load_file(path))
        except (SafetensorError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: not the weights of {directory / 'config.json'} ({reason})") from None
        return model.eval()

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images B,C,H,W of the architecture's resolution to logits."""
        x = self.stem(images_BCHW)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)  # type: ignore[no-any-return]
