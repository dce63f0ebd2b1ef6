"""The report as a reader and as a browser see it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.report import write_figures, write_report
from supernet.schema import UserError

Change = Callable[[str, Callable[[Any], object]], None]
SECTIONS = ("models", "pareto", "architectures", "importance", "trajectory", "latency", "cost", "environment")


class Page(HTMLParser):
    """Element ids, links, tags and visible text of an HTML page; notes tags that are not closed."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.note(attrs)

    def note(self, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if identity := values.get("id"):
            self.ids.append(identity)
        if link := values.get("href"):
            self.links.append(link)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(run_to_read: Path) -> Page:
    return Page(write_report(run_to_read).read_text())


def test_the_page_is_well_formed_and_its_identifiers_are_distinct(page: Page) -> None:
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_every_section_of_a_finished_run_is_there(page: Page) -> None:
    assert set(SECTIONS) <= set(page.ids)
    assert "over that of Identity. A low score is skipped first." in page.text
    assert "missing" not in page.ids


def test_entries_that_were_not_measured_or_not_well_enough_are_counted(page: Page) -> None:
    counted = "4 entries, 1 of them between measured ones, 2 of them not known as well as was asked for"
    assert f"{counted}, onnxruntime 1.31.0" in page.text


def test_the_page_needs_nothing_from_outside_and_runs_no_script(run_directory: Path) -> None:
    text = write_report(run_directory).read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "image"} & set(page.tags)
    assert "@import" not in text
    assert "url(http" not in text
    assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_only_files_that_are_there_are_linked(run_directory: Path) -> None:
    record = json.loads((run_directory / "evaluation.json").read_text())["models"][0]
    linked = f'href="{record["weights"]}"'
    assert linked not in write_report(run_directory).read_text()
    (run_directory / record["weights"]).write_bytes(b"")
    text = write_report(run_directory).read_text()
    assert linked in text
    assert f'href="{record["onnx"]}"' not in text


def test_every_link_leads_to_a_section_or_into_the_run_folder(page: Page) -> None:
    for link in page.links:
        assert link.removeprefix("#") in page.ids or link.startswith("models/"), link


def test_the_first_screen_says_what_was_delivered_and_whether_search_won(page: Page) -> None:
    first = page.text[: page.text.index("Every model was retrained")]
    assert "2 models, each within its budget" in first
    assert "0.8 ms → 0.784 ms measured" in first
    assert "Search beat uniform scaling at 1 of 2 budgets; 1 too close to call." in first
    assert "no claim" in first


def test_the_same_files_give_the_same_bytes(run_directory: Path) -> None:
    first = write_report(run_directory).read_bytes()
    assert write_report(run_directory).read_bytes() == first


def test_text_from_the_files_cannot_become_markup(run_directory: Path, change: Change) -> None:
    change("config.json", lambda data: data.update(name="<script>alert(1)</script>"))
    page = Page(write_report(run_directory).read_text())
    assert "script" not in page.tags
    assert "dearer" not in page.tags
    assert "<dearer>" in page.text  # the reason of a rejected action


def test_a_model_above_its_budget_is_marked(run_directory: Path, change: Change) -> None:
    change("evaluation.json", lambda data: data["models"][0].update(measured_ms=0.9))
    text = Page(write_report(run_directory).read_text()).text
    assert "2 models, 1 within budget and 1 above it" in text
    assert "search-0.8ms misses its budget: 0.900 ms measured, 12.5 % above 0.8 ms." in text


@pytest.mark.parametrize(
    ("file", "gone"),
    [
        ("evaluation.json", {"models", "pareto"}),
        ("trajectory.jsonl", {"trajectory"}),
        ("manifest.json", {"cost", "environment"}),
    ],
)
def test_a_report_without_a_file_shows_the_rest_and_names_the_file(
    run_directory: Path, file: str, gone: set[str]
) -> None:
    (run_directory / file).unlink()
    page = Page(write_report(run_directory).read_text())
    assert set(SECTIONS) - set(page.ids) == gone
    assert file in page.text[page.text.index("Not in this folder yet") :]


def test_the_report_of_a_run_that_has_just_begun_is_a_page(run_directory: Path) -> None:
    for path in run_directory.iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(write_report(run_directory).read_text())
    assert "No model has been evaluated yet" in page.text
    assert "slimformer supernet cifar10" in page.text


def test_both_trajectories_are_shown_and_of_many_alternatives_the_nearest(run_directory: Path, change: Change) -> None:
    methods = ["search", "frontier", "uniform"]
    change("config.json", lambda data: data["search"].update(methods=methods))
    steps = [json.loads(line) for line in (run_directory / "trajectory.jsonl").read_text().splitlines()]
    for step in steps[1:]:
        (alternative,) = step["alternatives"]
        step["alternatives"] = [
            alternative
            | {"drop_per_mes": drop, "reason": None, "action": {"kind": "skip_path", "stage": 2, "block": n}}
            for n, drop in enumerate((0.5, 0.4, 0.1, 0.3, 0.2), start=1)
        ]
    changed = {"kind": "change_candidate", "stage": 1, "block": 2, "candidate": "separable_conv"}
    steps[2]["action"] = changed
    lines = "".join(json.dumps(step) + "\n" for step in steps)
    (run_directory / "trajectory-frontier.jsonl").write_text(lines)
    for name in ("evaluation.json", "importance.json", "latency-audit.json", "supernet/supernet-metrics.csv"):
        (run_directory / name).unlink()  # which only take time to draw
    page = Page(write_report(run_directory).read_text())
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    frontier = page.text[page.text.index("Over the whole frontier") :]
    assert "change stage 1 block 2 to separable conv" in frontier
    assert "skip stage 2 block 3 : 0.1 skip stage 2 block 5 : 0.2 skip stage 2 block 4 : 0.3 and 2 more" in (
        frontier.replace("block 3:", "block 3 :").replace("block 5:", "block 5 :").replace("block 4:", "block 4 :")
    )


def test_the_integer_programs_are_shown_with_their_bounds(run_directory: Path, change: Change) -> None:
    change("config.json", lambda data: data["search"].update(methods=["search", "exact"]))
    program = {"used": {"ms": 1.25, "parameters": 81234}, "at_most": {"ms": 1.5, "parameters": 100000}}
    programs = [
        program | {"budget_ms": budget_ms, "modelled_percent": 88.0, "bound_percent": bound}
        for budget_ms, bound in ((1.6, 88.0), (0.8, 88.0), (0.8, 88.125))
    ]
    (run_directory / "exact.json").write_text(json.dumps({"schema_version": 1, "programs": programs}))
    text = Page(write_report(run_directory).read_text()).text
    shown = text[text.index("Every program finds") :]
    assert "0.8 2 88.00 88.12 1e-01 1.25 of 1.5 ms; 81.2 k of 100 k parameters" in shown
    assert "1.6 1 88.00 88.00 0 " in shown


def test_a_block_type_that_nobody_registered_is_drawn_and_named(run_directory: Path) -> None:
    path = run_directory / "models" / "search-0.8ms" / "architecture.yaml"
    data = yaml.safe_load(path.read_text())
    data["stages"][0]["blocks"][0] = {"type": "somebodys_own"}
    path.write_text(yaml.safe_dump(data))
    assert "somebodys own" in Page(write_report(run_directory).read_text()).text


def test_a_broken_file_stops_the_report_and_leaves_the_old_one(run_directory: Path) -> None:
    old = write_report(run_directory).read_bytes()
    (run_directory / "importance.json").write_text("{")
    with pytest.raises(UserError, match=r"importance.json: not valid JSON"):
        write_report(run_directory)
    assert (run_directory / "report.html").read_bytes() == old


def test_stages_that_ran_on_two_machines_are_told_apart(run_directory: Path, change: Change) -> None:
    def move(data: Any) -> None:
        data["stages"]["supernet"]["environment"]["machine"]["cpu"] = "Xeon elsewhere"

    change("manifest.json", move)
    text = Page(write_report(run_directory).read_text()).text
    assert "Xeon elsewhere, 2 cores, 24 GB, Linux" in text
    assert "AMD EPYC, 2 cores, 24 GB, Linux" in text


def test_every_kind_of_importance_is_shown_and_explained(three_kinds: Path, change: Change) -> None:
    change("config.json", lambda data: data["search"].update(importance="removal"))
    text = Page(write_report(three_kinds).read_text()).text
    for words in (
        "removal, how much the loss rises where this block alone is left out, batch norm re-fitted; taylor, the mean",
        "Removal: rise of the loss, 10⁻³ nats; stage sums",
        "Taylor: squared gradient, 10⁻³ nats²; stage sums",
        "gradient in a gate on the block's branch. A low score by removal is skipped first.",
    ):
        assert words in text


def test_figures_are_also_files_that_need_no_style_sheet(run_directory: Path) -> None:
    paths = write_figures(run_directory)
    assert [path.name for path in paths] == [
        "pareto.svg",
        "importance.svg",
        "supernet.svg",
        "trajectory.svg",
        "latency-audit.svg",
    ]
    assert all("var(--" not in path.read_text() for path in paths)


def test_a_figure_can_be_a_bitmap(run_directory: Path) -> None:
    for name in ("importance.json", "trajectory.jsonl", "latency-audit.json", "supernet/supernet-metrics.csv"):
        (run_directory / name).unlink()
    (path,) = write_figures(run_directory, suffix=".png")
    assert path.read_bytes().startswith(b"\x89PNG")
