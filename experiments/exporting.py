"""Export: ONNX files, their parity, and the measured latency of the whole nets, which decides what is delivered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from experiments.bundles import ON_DEVICE, measured_elsewhere
from experiments.delivered_latency import DeliveredNets, Latency
from experiments.models import (
    DELIVERED_FILES,
    Exported,
    ExportedModel,
    FoundModel,
    Job,
    found,
    measured_file,
    onnx_file,
    trained_model,
)
from experiments.retraining import retrain_model
from experiments.run import Run
from experiments.solving import Solver
from search.bundle import PLAN, RESULTS
from search.delivery import LESS
from search.model_files import files_of, model_file, write_model
from search.slimming import Unreachable
from supernet import Architecture, UserError, cost
from supernet.onnx_export import export_onnx, onnx_parity
from supernet.quantize import quantized_onnx
from supernet.schema import save, write_atomically
from train.checkpoint import save_weights
from train.preprocessing import Preprocessing
from train.randomness import generator_for
from train.retraining import weights_path
from train.splits import Split, evaluation_batches

MOST_TRIES = 4
MOST_DIFFERENCE = 1e-2  # of the largest logit, between ONNX and torch: far above rounding


def export_models(run: Run) -> list[Path]:
    """Export and measure every trained model; one over its budget is slimmed on, retrained and exported again."""
    models = found(run.path).models
    for model in models:
        _export(run, model.job, run.path / "models" / model.job.name)
    nets, solver = DeliveredNets(run), Solver(run)
    latencies = _measure(run, nets, [model.job for model in models])
    results, paths = [], []
    for model in models:
        result = _within_budget(run, nets, solver, model, latencies[model.job.name])
        results.append(result)
        names = dict.fromkeys((*DELIVERED_FILES, _measured_file(run)))
        paths += [file for name in names for file in files_of(run.path / "delivered" / model.job.name / name)]
    if run.elsewhere and models:
        paths += [run.path / ON_DEVICE / name for name in (PLAN, RESULTS)]
    table = run.table
    record = Exported(
        runtime=table.runtime.name,
        precision=table.precision,
        threads=table.threads,
        batch_size=table.batch_size,
        models=tuple(results),
    )
    for again in (solver.save_trajectories, solver.save_proofs):  # made for a model above its budget
        paths += again(suffix="-export")
    save(record, run.path / "exported.json")
    return [*paths, run.path / "exported.json"]


def _export(run: Run, job: Job, trained: Path) -> None:
    """Write `delivered/NAME/`: architecture, weights, preprocessing, ONNX file, and the runtime's own file if any."""
    folder = run.path / "delivered" / job.name
    architecture = Architecture.load(trained / "architecture.yaml")
    model = trained_model(architecture, weights_path(trained))
    architecture.save(folder / "architecture.yaml")
    save_weights(model, folder / "model.safetensors")
    export_onnx(
        model,
        folder / "model.onnx",
        in_channels=architecture.in_channels,
        resolution_px=architecture.resolution_px,
    )
    if run.precision == "int8":
        content = quantized_onnx((folder / "model.onnx").read_bytes(), _calibration(run))
        write_atomically(folder / onnx_file(run.precision), content)
    elif _measured_file(run) not in DELIVERED_FILES:
        table = run.experiment.table
        shape = (table.batch_size, *architecture.input_shape)
        write_model(folder / _measured_file(run), model_file(table.runtime, model, shape, precision=run.precision))
    test = run.data.test
    preprocessing = Preprocessing(
        resolution_px=architecture.resolution_px,
        channels=architecture.in_channels,
        crop_fraction=1.0 if test.stored_px == test.out_px else run.experiment.data.crop_fraction,
        mean=run.data.normalisation.mean,
        std=run.data.normalisation.std,
        class_names=run.data.class_names,
    )
    save(preprocessing, folder / "preprocessing.json")


def _measured_file(run: Run) -> str:
    return measured_file(run.experiment.table.runtime, run.precision)


def calibration_split(run: Run) -> Split:
    """Training images drawn from all classes, to calibrate int8 on."""
    train, count = run.data.train, run.experiment.evaluate.calibration_images
    return train.subset(torch.randperm(len(train), generator=generator_for(run.experiment.seeds.data, "int8"))[:count])


def _calibration(run: Run) -> list[np.ndarray]:
    """Batches as they are tested, not augmented."""
    split, size = calibration_split(run), run.experiment.evaluate.batch_size
    return [images_BCHW.numpy() for images_BCHW, _ in evaluation_batches(split, size)]


def _measure(run: Run, nets: DeliveredNets, jobs: list[Job]) -> dict[str, Latency]:
    """What the delivered models take, here or on the table's device."""
    if run.elsewhere:
        return {name: Latency((timing,), speeds=()) for name, timing in measured_elsewhere(run, jobs).items()}
    return nets.undisturbed(jobs)


def _within_budget(run: Run, nets: DeliveredNets, solver: Solver, model: FoundModel, latency: Latency) -> ExportedModel:
    """The record of a model within its budget; if need be of a smaller one, trained and measured in its place."""
    job, tries, predicted_ms = model.job, 1, model.predicted_ms
    if run.elsewhere:  # one over its budget is said to be: another would have to go to the device again
        return _record(run, job, latency, predicted_ms=predicted_ms, tries=tries)
    while latency.timing.median_ms > job.budget_ms and tries < MOST_TRIES:
        measured_ms = latency.timing.median_ms
        run.screen.line(f"  {job.name}: measures {measured_ms:.4g} ms, over its {job.budget_ms:g} ms; slimming on")
        ratio = measured_ms / predicted_ms
        ask_ms = min(job.budget_ms * (1 - run.experiment.search.margin) / ratio, predicted_ms * (1 - LESS))
        try:
            delivery = solver.deliver(job, ask_at_most_ms=ask_ms)
        except Unreachable as reason:
            run.screen.line(f"  {job.name}: {reason}")
            break
        tries += 1
        predicted_ms = delivery.delivered.predicted_ms
        directory = f"again/{delivery.architecture.digest}"  # an interrupted training goes on with its own net alone
        with run.screen.bar(f"training {job.name} again") as advance:
            retrain_model(run, delivery.architecture, job, progress=advance, into=directory)
        _export(run, job, run.path / directory / job.name)
        latency = nets.undisturbed([job])[job.name]
    return _record(run, job, latency, predicted_ms=predicted_ms, tries=tries)


def _record(run: Run, job: Job, latency: Latency, *, predicted_ms: float, tries: int) -> ExportedModel:
    folder = run.path / "delivered" / job.name
    architecture = Architecture.load(folder / "architecture.yaml")
    model = trained_model(architecture, folder / "model.safetensors")
    images, _ = next(iter(evaluation_batches(run.data.score, run.experiment.evaluate.parity_images)))
    with torch.inference_mode():
        parity = onnx_parity(model, folder / "model.onnx", images.cpu())
    if parity.max_relative > MOST_DIFFERENCE:
        raise UserError(
            f"{folder / 'model.onnx'}: computes something else than the model: its logits differ by"
            f" {100 * parity.max_relative:.2g} %; a block that decides by the values of a tensor cannot be exported"
        )
    size, timing = cost(architecture), latency.timing
    return ExportedModel(
        job=job,
        digest=architecture.digest,
        predicted_ms=predicted_ms,
        measured_ms=timing.median_ms,
        measured_p10_ms=timing.p10_ms,
        measured_p90_ms=timing.p90_ms,
        at_tables_speed_ms=latency.at_tables_speed_ms if latency.speeds else None,
        within_budget=timing.median_ms <= job.budget_ms,
        tries=tries,
        measurements=len(latency.timings),
        onnx_max_difference=parity.max_abs_difference,
        onnx_max_relative_difference=parity.max_relative,
        parameters=size.parameters,
        macs=size.macs,
    )
