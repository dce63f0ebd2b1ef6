"""The documents are true: snippets run, commands, options and files exist, and no figure is still to come."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
import yaml

from experiments.cli import app
from experiments.experiment import load_experiment
from experiments.plugins import import_plugins
from search import methods, runtimes
from search.bundle import SCRIPT
from search.front import Front
from search.measure import measure
from supernet import Architecture, MetaFormer, SearchSpace, Supernet, block_types, blocks, create_model, inherit
from supernet.blocks import build_block
from supernet.candidate import Candidate
from supernet.convert import export_weights
from supernet.schema import parse, parse_yaml
from tests.search.test_agreement import table_of
from train import save_weights

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/LOG.md", "Makefile")
EXPERIMENTS = tuple(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "experiments").glob("*.yaml")))
SHELL_COMMANDS = ("make", "slimformer", "python")
PLACES = ("supernet", "search", "train", "experiments", "analysis", "tests", "docs", ".ci")


def fenced(language: str) -> list[str]:
    """The contents of the README's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def snippet(containing: str) -> str:
    """The README's one Python block with these words."""
    (found,) = (block for block in fenced("python") if containing in block)
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Every command with the document it is in: of shell blocks and indented blocks, and in backticks in the text."""
    found = [("README.md", line) for block in fenced("sh") for line in block.splitlines() if line.strip()]
    for name in (*DOCUMENTS, *EXPERIMENTS):
        text = (ROOT / name).read_text()
        found += [(name, span) for span in re.findall(r"`((?:slimformer|make) [^`]+)`", text)]
        if name != "Makefile":  # there, an indented line is a recipe
            # in a block, two spaces and more come before what is said about the command
            indented = re.findall(r"^(?:#  |   ) *((?:slimformer|make) .*)$", text, re.MULTILINE)
            found += [(name, line.split("  ")[0]) for line in indented]
    return [(name, shlex.split(line, comments=True)) for name, line in found]


def known_commands() -> dict[str, Any]:
    """The console script's commands, as click's objects."""
    return typer.main.get_command(app).commands  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered in a test is forgotten after it."""
    monkeypatch.setattr(block_types, "_BLOCK_TYPES", dict(block_types._BLOCK_TYPES))
    monkeypatch.setattr(blocks, "_BUILDERS", dict(blocks._BUILDERS))
    monkeypatch.setattr(runtimes, "_FACTORIES", dict(runtimes._FACTORIES))
    monkeypatch.setattr(methods, "_OWN", {})


@pytest.fixture
def readme_plugins(registries: None, tmp_path: Path) -> Iterator[None]:
    """The README's own block, runtime and search method, loaded as `--plugin` loads them."""
    paths = []
    files = (("my_blocks", "register_block"), ("my_runtimes", "register_runtime"), ("my_methods", "register_method"))
    for name, containing in files:
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(snippet(containing))
    import_plugins(paths)
    yield
    for path in paths:
        del sys.modules[path.stem]


def readme_space() -> SearchSpace:
    """A small space with the README's own block as its first candidate, as the README writes it."""
    (listed,) = re.findall(r"`candidates: (\[\{type: depthwise.*?\])`", README)
    candidates = parse_yaml(listed)
    stages = [
        {"depth": 1, "width_channels": {"smallest": 16, "largest": 32}, "candidates": candidates},
        {"depth": 2, "width_channels": {"smallest": 16, "largest": 48}, "candidates": candidates},
    ]
    data = {"in_channels": 3, "resolution_px": [16, 16], "num_classes": 10, "stages": stages}
    return parse(SearchSpace, data, source="README.md")


def randomized(supernet: Supernet) -> Supernet:
    """Every norm, bias and statistic random, since fresh ones test little."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*supernet.parameters(), *supernet.buffers()):
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return supernet.eval()


@pytest.mark.usefixtures("readme_plugins")
def test_the_readmes_block_is_a_candidate_of_a_supernet_and_its_subnets_compute_the_same() -> None:
    space = readme_space()
    supernet = randomized(Supernet(space))
    images, generator = torch.randn(2, 3, 16, 16), torch.Generator().manual_seed(1)
    chosen = [space.largest, *(space.random(generator) for _ in range(8))]
    assert any(block.type == "depthwise" for stage in chosen[0].stages for block in stage.blocks)
    with torch.no_grad():
        for subnet in chosen:
            torch.testing.assert_close(inherit(supernet, subnet)(images), supernet(images, subnet))


@pytest.mark.usefixtures("readme_plugins")
def test_the_readmes_block_is_written_and_read_with_its_options(tmp_path: Path) -> None:
    largest = readme_space().largest
    largest.save(tmp_path / "architecture.yaml")
    assert Architecture.load(tmp_path / "architecture.yaml") == largest
    assert "{type: depthwise, kernel: 5}" in (tmp_path / "architecture.yaml").read_text()


@pytest.mark.usefixtures("readme_plugins")
def test_the_readmes_runtime_runs_and_times_a_net_with_the_readmes_block() -> None:
    model = MetaFormer(readme_space().largest).eval()
    (name,) = re.findall(r"`table: \{runtime: ([\w-]+)\}`", README)
    run = runtimes.runtime(name, threads=1).build(model, (1, 3, 16, 16))
    (logits,) = run()  # type: ignore[misc]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(torch.ones(1, 3, 16, 16)), rtol=1e-3, atol=1e-4)
    timing = measure({"net": run}, rounds=3, warmup=1, generator=torch.Generator().manual_seed(0))["net"]
    assert 0 < timing.median_ms < 1000


@pytest.mark.usefixtures("readme_plugins")
def test_the_readmes_search_method_climbs_within_the_budget() -> None:
    (name,) = re.findall(r"--method (hill_climbing) ", README)
    space = readme_space()
    table, best = table_of(space), space.scaled(0.5)

    def alike(net: Architecture) -> float:
        """How many choices a net shares with the best."""
        widths = sum(a.width_channels == b.width_channels for a, b in zip(net.stages, best.stages, strict=True))
        return widths + sum(a == b for a, b in zip(space.choices(net), space.choices(best), strict=True))

    budget_ms = 1.2 * table.latency_ms(best)
    steps = []
    for seed in range(2):
        answer = methods.search_method(name)(
            space,
            table=table,
            budget_ms=budget_ms,
            score=alike,
            importance=None,  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(seed),
        )
        assert isinstance(answer, Front)
        percents = [found.percent for found in answer.scored]
        assert percents == sorted(set(percents))
        assert answer.at(budget_ms) == answer.scored[-1]
        steps.append(len(percents))
    assert max(steps) > 1


def test_the_readme_lists_every_search_method_of_the_project() -> None:
    table = README.split("| method | what it does |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(methods.BUILT_IN)


def test_a_delivered_model_loads_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = snippet("from train import load_weights")
    (folder,) = re.findall(r'Path\("(.*?)"\)', code)
    space = {"in_channels": 3, "resolution_px": [16, 16], "num_classes": 10}
    stages = [{"depth": 1, "width_channels": {"smallest": 16, "largest": 16}, "candidates": ["mb4d"]}]
    model = MetaFormer(parse(SearchSpace, space | {"stages": stages}, source="the test").largest)
    model.architecture.save(tmp_path / folder / "architecture.yaml")
    save_weights(model, tmp_path / folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict[str, MetaFormer] = {}
    exec(code, names)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(names["model"](images), model.eval()(images))


def test_a_published_model_takes_a_checkpoint_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = snippet("from supernet.convert import load_weights")
    (name,) = re.findall(r'create_model\("(.*?)"\)', code)
    model = create_model(name)
    monkeypatch.chdir(tmp_path)
    torch.save(export_weights(model, "sail"), f"{name}.pth")
    names: dict[str, MetaFormer] = {}
    exec(code, names)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(images)
        assert torch.equal(names["model"](images), expected)
        torch.testing.assert_close(names["deployed"](images), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(MetaFormer.from_pretrained(name)(images), expected)


def test_the_readmes_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, MetaFormer] = {}
    exec(snippet("list_models"), names)
    assert names["model"].architecture.resolution_px == (96, 96)
    assert "efficientformer_l1" in capsys.readouterr().out


def test_the_readmes_experiment_loads_with_the_readmes_overrides(tmp_path: Path) -> None:
    text, limited = fenced("yaml")
    path = tmp_path / "flowers.yaml"
    path.write_text(yaml.safe_dump(parse_yaml(text) | parse_yaml(limited)))
    limits = load_experiment(path).search.limits
    assert limits is not None
    assert [device.at_most_ms for device in limits.devices] == [5.0]
    path.write_text(text)
    overrides = [words[at + 1] for _, words in commands() for at, word in enumerate(words) if word == "--set"]
    assert overrides
    for override in overrides:
        field, value = override.split("=")
        changed = load_experiment(path, overrides=(override,)).model_dump(mode="json")
        for part in field.split("."):
            changed = changed[part]
        assert changed == parse_yaml(value)


def test_the_readmes_candidates_can_be_built() -> None:
    written = re.findall(r"`(\{type: (?:metaformer|conv), .*?\})`", README)
    candidates = [Candidate.model_validate(parse_yaml(text), strict=False) for text in written]
    assert [candidate.name for candidate in candidates] == ["metaformer", "thin"]
    assert all(build_block(found.block(16), width_channels=16, grid=(4, 4)) for found in candidates)


def test_every_command_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    known = known_commands()
    found = commands()
    assert {words[0] for _, words in found} == set(SHELL_COMMANDS)
    for document, (program, *words) in found:
        line = f"{document}: {shlex.join([program, *words])}"
        if program == "make":
            assert [word for word in words if "=" not in word and word not in targets] == [], line
            continue
        if program == "python":
            assert words == [SCRIPT], line  # in a bundle
            continue
        assert words[0] in known, line
        options = {option for parameter in known[words[0]].params for option in parameter.opts}
        assert [word for word in words if word.startswith("--") and word not in options] == [], line


def test_a_stage_that_the_readme_names_is_a_command() -> None:
    (listed,) = re.findall(r"# then: ([\w, ]+)", README)
    stages = ["supernet", *listed.replace(" ", "").split(",")]
    assert [name for name in known_commands() if name in stages] == stages


def test_every_file_that_the_documents_name_exists() -> None:
    for name in (*DOCUMENTS, *EXPERIMENTS):
        text = (ROOT / name).read_text()
        linked = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
        folder = (ROOT / name).parent
        headings = {"#" + heading.lower().replace(" ", "-") for heading in re.findall(r"(?m)^#+ (.+)$", text)}
        assert [link for link in linked if link not in headings and not (folder / link).exists()] == [], name
        quoted = [word for word in re.findall(r"`([\w./-]+)`", text) if word.split("/")[0] in PLACES and "/" in word]
        quoted += re.findall(r"\bexperiments/\w+\.yaml\b", text)
        assert [word for word in quoted if not (ROOT / word.removesuffix("NAME/")).exists()] == [], name


def test_every_file_that_the_readme_promises_of_a_run_is_one_that_the_code_writes() -> None:
    (table,) = re.findall(r"\| file \| what it is \|\n(.*?)\n\n", README, flags=re.DOTALL)
    first_columns = [row.split("|")[1] for row in table.splitlines()[1:]]
    names = [path.split("/")[-1] for column in first_columns for path in re.findall(r"`(.*?)`", column)]
    assert len(names) >= 10
    rooms = ("experiments", "search", "analysis")
    code = "".join(path.read_text() for room in rooms for path in (ROOT / room).glob("*.py"))
    written = [name for name in names if "RUNTIME" not in name]
    assert [name for name in written if f'"{name}"' not in code] == []
    assert 'f"latency-{self.runtime.name}-' in code


def test_the_table_of_rooms_names_every_room() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"tests"}
    assert set(re.findall(r"^\| \[(\w+)/\]\(\1\)", README, flags=re.MULTILINE)) == rooms


@pytest.mark.parametrize("name", [*DOCUMENTS, *EXPERIMENTS])
def test_no_figure_in_a_document_is_still_to_come(name: str) -> None:
    assert re.findall(r"@@\w+@@", (ROOT / name).read_text()) == []
