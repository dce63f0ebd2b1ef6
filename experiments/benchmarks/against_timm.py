"""Benchmark: this project's models against timm's of the same name, inference and training.

    python -m experiments.benchmarks.against_timm

Both have the same weights. Inference, batch 1, one thread: eager as it is built, eager after `fused()` (timm's as it is
built), torch.compile, ONNX Runtime. Training: forward, backward and an AdamW step, channels_last, bf16 autocast where
the machine computes it, all threads. Every round takes each side of every way once, in random order; a ratio is that of
the medians, ours over timm's.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.artifacts import Environment, environment
from experiments.benchmarks.interleaved import interleaved_seconds
from experiments.console import Screen
from search.measure import Timing, machine, measure
from supernet import create_model
from supernet.convert import load_weights
from supernet.onnx_export import Exporter, onnx_bytes, open_session
from supernet.schema import Record, save
from train.randomness import generator_for
from train.recipe import Precision, autocast, resolved_precision

ROOM = Path(__file__).parent.parent
MODELS = (
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientformerv2_s1",
    "caformer_s18",
    "convformer_s18",
    "poolformer_s12",
    "poolformerv2_s12",
)
INFERENCE = ("eager", "fused", "compiled", "onnxruntime")
Way = Literal["eager", "fused", "compiled", "onnxruntime", "training"]
Side = Literal["ours", "timm"]
SIDES: tuple[Side, Side] = ("ours", "timm")
WARMUP = 5
OF_ONE_SIZE = ("efficientformer_",)  # timm builds these for 224 px alone


class Comparison(Record):
    """One way of running one model: milliseconds of both sides, medians, and ours over timm's."""

    model: str
    way: Way
    batch_size: int
    resolution_px: int
    ours_ms: float
    timm_ms: float
    ratio: float


class AgainstTimmRecord(Record):
    """All figures and the conditions they hold under."""

    schema_version: Literal[1] = 1
    date: str
    timm: str
    training_precision: str
    inference_rounds: int
    training_rounds: int
    training_threads: int
    environment: Environment
    comparisons: tuple[Comparison, ...]


def pair(name: str, *, resolution_px: int) -> dict[Side, nn.Module]:
    """Our model and timm's with the same weights."""
    size: dict[str, Any] = {"img_size": resolution_px} if name.startswith("efficientformerv2") else {}
    reference = timm.create_model(name, **size)
    ours = create_model(name, resolution_px=resolution_px)
    load_weights(ours, reference.state_dict())
    return {"ours": ours, "timm": reference}


def inference_nets(sides: dict[Side, nn.Module], images: Tensor) -> dict[tuple[Way, Side], Callable[[], object]]:
    """Calls that run one inference each; of timm there is no fused form, so its side is the eager one."""
    models = {side: model.eval() for side, model in sides.items()}
    nets: dict[tuple[Way, Side], Callable[[], object]] = {}
    for side, model in models.items():
        nets["eager", side] = _eager(model, images)
        nets["compiled", side] = _eager(torch.compile(model), images)  # type: ignore[arg-type]
        nets["onnxruntime", side] = _session(model, images, exporter=None if side == "ours" else "dynamo")
    nets["fused", "ours"] = _eager(models["ours"].fused(), images)  # type: ignore[operator]
    return nets


def _eager(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(images)

    return run


def _session(model: nn.Module, images: Tensor, *, exporter: Exporter | None) -> Callable[[], object]:
    """Ours by the exporter that the project takes; timm's by torch's newer one, as the older fails on its norms."""
    content = onnx_bytes(model, input_shape=tuple(images.shape), exporter=exporter)
    session = open_session(content, threads=1)
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def training_step(model: nn.Module, images: Tensor, targets: Tensor, precision: Precision) -> Callable[[], object]:
    """A step of AdamW on one batch."""
    model.train().to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> object:
        with autocast(precision, images.device):
            logits = model(images)
        if isinstance(logits, tuple):
            logits = (logits[0] + logits[1]) / 2
        loss = F.cross_entropy(logits.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def compare_inference(name: str, *, rounds: int) -> list[Comparison]:
    """Every way of inference, batch 1, at 224 px, one thread."""
    torch.set_num_threads(1)
    images = torch.randn(1, 3, 224, 224, generator=generator_for(0, "benchmark images"))
    nets = inference_nets(pair(name, resolution_px=224), images)
    timings: dict[tuple[Way, Side], Timing] = measure(
        nets, rounds=rounds, warmup=WARMUP, generator=generator_for(0, "benchmark order")
    )
    found = []
    for way in INFERENCE:
        theirs = timings["eager" if way == "fused" else way, "timm"].median_ms  # type: ignore[index]
        found.append(_comparison(name, way, 1, 224, timings[way, "ours"].median_ms, theirs))  # type: ignore[index,arg-type]
    return found


def compare_training(name: str, *, rounds: int, threads: int, batch_size: int) -> Comparison:
    """A training step of both at 128 px, or at 224 where timm's model runs at no other size."""
    torch.set_num_threads(threads)
    size = 224 if name.startswith(OF_ONE_SIZE) else 128
    generator = generator_for(0, "benchmark images")
    images = torch.randn(batch_size, 3, size, size, generator=generator)
    targets = torch.randint(0, 1000, (batch_size,), generator=generator)
    steps = {
        side: training_step(model, images, targets, "auto") for side, model in pair(name, resolution_px=size).items()
    }
    seconds = interleaved_seconds(steps, rounds=rounds, warmup=1)
    ours, theirs = (1000 * statistics.median(seconds[side]) for side in SIDES)
    return _comparison(name, "training", batch_size, size, ours, theirs)


def _comparison(name: str, way: Way, batch_size: int, size: int, ours: float, theirs: float) -> Comparison:
    return Comparison(
        model=name,
        way=way,
        batch_size=batch_size,
        resolution_px=size,
        ours_ms=float(f"{ours:.5g}"),
        timm_ms=float(f"{theirs:.5g}"),
        ratio=float(f"{ours / theirs:.4g}"),
    )


def show(comparisons: Iterable[Comparison], screen: Screen) -> None:
    """One row a model and way."""
    rows = [
        [f"{one.model}, {one.way}", f"{one.ours_ms:.1f}", f"{one.timm_ms:.1f}", f"{one.ratio:.2f}"]
        for one in comparisons
    ]
    screen.table("Ours against timm", ["model", "ours ms", "timm ms", "ratio"], rows)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.against_timm", description=_SUMMARY)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--rounds", type=int, default=100, help="inferences of each kind (default: 100)")
    parser.add_argument("--training-rounds", type=int, default=40, help="training steps of each side (default: 40)")
    parser.add_argument("--batch-size", type=int, default=32, help="images in a training step (default: 32)")
    parser.add_argument("--out", type=Path, help="default: experiments/records/, named after the condition")
    return parser.parse_args(words)


_SUMMARY = "This project's models against timm's of the same name: inference and training steps."


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, and write the record."""
    arguments = _arguments(words)
    screen, threads = Screen(), torch.get_num_threads()
    precision = resolved_precision("auto", torch.device("cpu"))
    command = shlex.join(["python", "-m", "experiments.benchmarks.against_timm", *(words or sys.argv[1:])])
    where, found = environment(threads=1, command=command), list[Comparison]()
    for name in arguments.models:
        of_one = compare_inference(name, rounds=arguments.rounds)
        of_one.append(
            compare_training(name, rounds=arguments.training_rounds, threads=threads, batch_size=arguments.batch_size)
        )
        show(of_one, screen)
        found += of_one
    record = AgainstTimmRecord(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        timm=timm.__version__,
        training_precision=precision,
        inference_rounds=arguments.rounds,
        training_rounds=arguments.training_rounds,
        training_threads=threads,
        environment=where,
        comparisons=tuple(found),
    )
    path = arguments.out or ROOM / "records" / f"against-timm-{machine().slug}-{precision}-t1.json"
    save(record, path)
    screen.line(f"Written: {path}")


if __name__ == "__main__":
    main()
