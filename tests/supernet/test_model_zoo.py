"""The published models by name: every file loads, and a wrong name is answered with the nearest."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from supernet.architecture import Architecture
from supernet.model_zoo import create_model, list_models, published_architecture
from supernet.schema import UserError, save

PUBLISHED = ["efficientformer_l1", "efficientformer_l3", "efficientformer_l7"]


def test_every_file_of_the_zoo_is_a_model_of_its_name() -> None:
    found = sorted(entry.name for entry in files("supernet.zoo").iterdir() if entry.name.endswith(".yaml"))
    assert found == [f"{name}.yaml" for name in list_models()]
    assert set(PUBLISHED) <= set(list_models())


@pytest.mark.parametrize("name", list_models())
def test_every_published_architecture_loads_and_is_distinct(name: str, tmp_path: Path) -> None:
    architecture = published_architecture(name)
    save(architecture, tmp_path / "again.yaml")
    assert Architecture.load(tmp_path / "again.yaml").digest == architecture.digest
    assert [n for n in list_models() if published_architecture(n).digest == architecture.digest] == [name]


def test_a_pattern_chooses_among_the_names() -> None:
    assert list_models("*_l[13]") == ["efficientformer_l1", "efficientformer_l3"]
    assert list_models("resnet*") == []


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown model 'efficientformer_l2' \(did you mean efficientformer_l.\?\)"):
        create_model("efficientformer_l2")
    with pytest.raises(UserError, match=r"unknown model '\.\./secret'"):
        published_architecture("../secret")


def test_an_illegal_size_is_refused_by_its_field() -> None:
    with pytest.raises(UserError, match=r"efficientformer_l1: in_channels: .*greater than 0 \(got 0\)"):
        create_model("efficientformer_l1", in_channels=0)
    with pytest.raises(UserError, match="resolution_px"):
        create_model("efficientformer_l1", resolution_px=(224, 0))
