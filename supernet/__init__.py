"""What can be built: architectures as values, search spaces, blocks, standalone models and supernets.

This room imports no other room of the project.
"""

from supernet.architecture import Architecture
from supernet.block_types import Block
from supernet.blocks import build_block, register_block
from supernet.candidate import Candidate
from supernet.cost import Cost, cost
from supernet.inherit import inherit
from supernet.metaformer import MetaFormer
from supernet.metapath import MetaPath
from supernet.model_zoo import create_model, list_models, published, published_architecture
from supernet.schema import UserError
from supernet.space import SearchSpace
from supernet.supernet import Sample, Supernet

__all__ = [
    "Architecture",
    "Block",
    "Candidate",
    "Cost",
    "MetaFormer",
    "MetaPath",
    "Sample",
    "SearchSpace",
    "Supernet",
    "UserError",
    "build_block",
    "cost",
    "create_model",
    "inherit",
    "list_models",
    "published",
    "published_architecture",
    "register_block",
]
