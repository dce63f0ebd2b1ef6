"""Candidate: one option of a position in a search space, its channels relative to the stage's width."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from supernet.block_types import Block, Identity, block_type
from supernet.schema import Record


class Candidate(Record):
    """One option of a position: a block type and its options, channels as ratios of the stage's width.

    Written flat in YAML: `{type: mb4d, mlp_ratio: 4, pool_kernel: 3}`, or only `mb4d` for a type without options. A
    part of a block may have options of its own: `{type: metaformer, mixer: {type: separable_conv, kernel: 5}}`. `name`
    tells apart two candidates of one type; it defaults to the type.
    """

    type: str
    name: str
    options: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict) or "type" not in value:
            return value
        options = dict(value.get("options", {}))
        options |= {key: option for key, option in value.items() if key not in cls.model_fields}
        if value["type"] in _DEFAULT_OPTIONS:
            options = _DEFAULT_OPTIONS[value["type"]] | options
        return {"type": value["type"], "name": value.get("name", value["type"]), "options": options}

    @model_validator(mode="after")
    def _buildable(self) -> Candidate:
        if "." in self.name or not self.name:
            raise ValueError(f"candidate name {self.name!r}: must not be empty or contain a dot")
        self.block(16)
        return self

    def block(self, width_channels: int) -> Block:
        """The block that this candidate is in a stage of this width."""
        return block_type(self.type).at_width(width_channels, **self.options)

    @property
    def is_identity(self) -> bool:
        """Whether choosing this candidate leaves the position out."""
        return block_type(self.type) is Identity

    @property
    def layout(self) -> Literal["map", "tokens"]:
        """Whether the candidate works on B,C,H,W maps or on B,N,C tokens."""
        return block_type(self.type).layout


_DEFAULT_OPTIONS: dict[str, dict[str, JsonValue]] = {
    "mb4d": {"mlp_ratio": 4},
    "mb3d": {"mlp_ratio": 4},
    "separable_conv": {"mixer_ratio": 2, "mlp_ratio": 4},
    "conv": {"mlp_ratio": 4},
    "unified_ffn": {"mlp_ratio": 4},
    "attention_ffn": {"mlp_ratio": 4},
    "metaformer": {"mlp_ratio": 4},
}
