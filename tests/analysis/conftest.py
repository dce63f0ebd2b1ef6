"""A small run folder with every file that the report reads, and one function that changes a file in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

BUDGETS_MS = (0.8, 2.0)
CORRECT = {"search": (8460, 8890), "uniform": (8310, 8870), "random": (8100, 8885)}


def block(kind: str) -> dict[str, Any]:
    return {"type": kind} if kind == "identity" else {"type": kind, "mlp_channels": 64}


def architecture(widths: tuple[int, int], blocks: tuple[tuple[str, ...], tuple[str, ...]]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "in_channels": 3,
        "resolution_px": [32, 32],
        "stem": {"width_channels": widths[0], "hidden_channels": 8, "strides": [2, 1], "activation": "relu"},
        "stages": [
            {
                "width_channels": width,
                "downsampling": {"stride": 2} if index else None,
                "blocks": list(map(block, kinds)),
            }
            for index, (width, kinds) in enumerate(zip(widths, blocks, strict=True))
        ],
        "head": {"num_classes": 10, "distillation": False},
    }


def model(method: str, index: int) -> dict[str, Any]:
    name = f"{method}-{BUDGETS_MS[index]}ms"
    measured_ms = BUDGETS_MS[index] * 0.98
    return {
        "name": name,
        "method": method,
        "budget_ms": BUDGETS_MS[index],
        "predicted_ms": measured_ms * 1.01,
        "measured_ms": measured_ms,
        "measured_p10_ms": measured_ms * 0.99,
        "measured_p90_ms": measured_ms * 1.03,
        "runtime": "onnxruntime",
        "correct": CORRECT[method][index],
        "accuracy_percent": CORRECT[method][index] / 100,
        "parameters": 1_230_000,
        "macs": 24_100_000,
        "onnx_max_difference": 1e-6,
        "architecture": f"models/{name}/architecture.yaml",
        "weights": f"models/{name}/model.safetensors",
        "onnx": f"models/{name}/model.onnx",
        "start": "scratch",
        "seed": 0,
    }


def trajectory() -> list[dict[str, Any]]:
    shapes = [
        architecture((32, 96), (("mb4d", "mb4d"), ("mb4d", "mb3d"))),
        architecture((32, 96), (("mb4d", "mb4d"), ("mb4d", "mb4d"))),
        architecture((16, 96), (("mb4d", "mb4d"), ("mb4d", "mb4d"))),
        architecture((16, 96), (("identity", "mb4d"), ("mb4d", "mb4d"))),
    ]
    actions = [
        None,
        {"kind": "drop_first_3d"},
        {"kind": "narrow_stage", "stage": 1, "width_channels": 16},
        {"kind": "skip_path", "stage": 1, "block": 1},
    ]
    rejected = {
        "action": {"kind": "skip_path", "stage": 2, "block": 1},
        "latency_ms": 1.0,
        "accuracy_percent": 80.0,
        "saved_ms": 0.1,
        "accuracy_drop_points": 2.0,
        "drop_per_ms": 20.0,
        "chosen": False,
        "reason": "<dearer>",
    }
    return [
        {
            "step": step,
            "action": actions[step],
            "architecture": shapes[step],
            "digest": f"{step:016x}",
            "latency_ms": 2.8 - 0.7 * step,
            "accuracy_percent": 85.0 - step,
            "saved_ms": 0.7 if step else 0.0,
            "accuracy_drop_points": 1.0 if step else 0.0,
            "alternatives": [rejected] if step else [],
        }
        for step in range(4)
    ]


ENVIRONMENT: dict[str, Any] = {
    "python": "3.12.4",
    "packages": {"torch": "2.15.0"},
    "machine": {"cpu": "AMD EPYC", "cores": 2, "memory_gb": 24.0, "system": "Linux"},
    "threads": 2,
    "commit": "3f9c2a7",
    "dirty": True,
    "command": "slimformer run cifar10.yaml",
}
CORRECTION = {"constant_ms": 0.0, "scale": 1.04}
AUDIT: dict[str, Any] = {
    "schema_version": 1,
    "runtime": "onnxruntime",
    "precision": "float32",
    "threads": 1,
    "pairs": [
        {"predicted_ms": 0.96 * ms, "measured_ms": ms, "measured_p10_ms": 0.99 * ms, "measured_p90_ms": 1.02 * ms}
        for ms in (0.7, 1.1, 1.6, 2.2)
    ],
    "mean_absolute_error_percent": 4.0,
    "bias_percent": -4.0,
    "worst_percent": 4.0,
    "kendall_tau": 1.0,
    "remeasurement_percent": 0.8,
    "correction": CORRECTION,
    "held_out": {"fitted": 2, "correction": CORRECTION, "mean_absolute_error_percent": 0.2},
}
IMPORTANCE: dict[str, Any] = {
    "schema_version": 1,
    "mixing": "hard",
    "temperature": 0.7,
    "metapaths": [
        {"stage": 1, "block": 1, "candidates": ["mb4d", "identity"], "probabilities": [0.8, 0.2], "score": 4.0},
        {"stage": 2, "block": 1, "candidates": ["mb4d"], "probabilities": [1.0], "score": None},
    ],
    "stages": [{"stage": 1, "score": 4.0}, {"stage": 2, "score": 0.0}],
    "discretization_gap": {"soft_accuracy_percent": 86.1, "hard_accuracy_percent": 85.4, "gap_points": 0.7},
}

BY_REMOVAL: dict[str, Any] = {
    **IMPORTANCE,
    "kind": "removal",
    "metapaths": [path | {"score": path["score"] and -0.0012} for path in IMPORTANCE["metapaths"]],
    "stages": [{"stage": 1, "score": -0.0012}, {"stage": 2, "score": 0.0}],
}
BY_GRADIENT: dict[str, Any] = {
    **IMPORTANCE,
    "kind": "taylor",
    "metapaths": [path | {"score": path["score"] and 0.37} for path in IMPORTANCE["metapaths"]],
    "stages": [{"stage": 1, "score": 0.37}, {"stage": 2, "score": 0.0}],
}


def files() -> dict[str, Any]:
    """Plain data for every JSON file of a finished run."""
    stage = {"seconds": 90.0, "started": "2026-02-03T10:00:00", "seeds": {"search": 3}, "environment": ENVIRONMENT}
    return {
        "config.json": {
            "schema_version": 1,
            "name": "cifar10",
            "seeds": {"data": 7},
            "search": {"budgets_ms": list(BUDGETS_MS)},
            "data": {"path": "data/cifar10"},
        },
        "manifest.json": {
            "schema_version": 1,
            "experiment": "cifar10",
            "environment": ENVIRONMENT,
            "stages": {"supernet": stage | {"seconds": 1200.0}, "search": stage},
        },
        "importance.json": IMPORTANCE,
        "latency-audit.json": AUDIT,
        "latency-onnxruntime-amd-epyc-float32-b1-t1.json": {
            "schema_version": 1,
            "runtime": {"name": "onnxruntime", "version": "1.31.0"},
            "precision": "float32",
            "threads": 1,
            "batch_size": 1,
            "resolution_px": [32, 32],
            "date": "2026-02-03",
            "entries": [{}, {"interpolated": True, "settled": True}, {"settled": False}, {"settled": False}],
        },
        "evaluation.json": {
            "schema_version": 1,
            "test_images": 10_000,
            "test_set": "cifar10/test",
            "models": [model(method, index) for index in range(2) for method in CORRECT],
        },
    }


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A finished run of two budgets and three methods, as files alone."""
    return written(tmp_path / "cifar10")


@pytest.fixture(scope="session")
def run_to_read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for tests that change nothing in it."""
    return written(tmp_path_factory.mktemp("run") / "cifar10")


def written(directory: Path) -> Path:
    (directory / "supernet").mkdir(parents=True)
    for name, data in files().items():
        (directory / name).write_text(json.dumps(data))
    lines = ["epoch,train_loss,held_out_loss,learning_rate,temperature,alpha_entropy"]
    lines += [f"{epoch},{2 - 0.1 * epoch},{'' if epoch < 2 else 1.5},0.001,1,0.6" for epoch in range(5)]
    (directory / "supernet" / "supernet-metrics.csv").write_text("\n".join(lines) + "\n")
    (directory / "trajectory.jsonl").write_text("".join(json.dumps(step) + "\n" for step in trajectory()))
    for record in files()["evaluation.json"]["models"]:
        path = directory / record["architecture"]
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(architecture((16, 96), (("identity", "mb4d"), ("mb4d", "separable_conv")))))
    return directory


@pytest.fixture
def three_kinds(run_directory: Path) -> Path:
    """The same run with the other kinds of importance beside the alphas'."""
    (run_directory / "importance-removal.json").write_text(json.dumps(BY_REMOVAL))
    (run_directory / "importance-taylor.json").write_text(json.dumps(BY_GRADIENT))
    return run_directory


@pytest.fixture
def change(run_directory: Path) -> Callable[[str, Callable[[Any], object]], None]:
    """Change the data of one JSON file of the run folder in place."""

    def edit(name: str, alter: Callable[[Any], object]) -> None:
        data = json.loads((run_directory / name).read_text())
        alter(data)
        (run_directory / name).write_text(json.dumps(data))

    return edit
