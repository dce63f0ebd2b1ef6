"""Measure the nets of this folder on this device, in milliseconds.

    pip install onnxruntime        # or openvino, executorch, on a Mac coremltools: plan.json says which
    python measure.py              # writes results.json
    python measure.py a.onnx ...   # prints the latency of these models instead, and writes nothing

Needs Python 3.8, numpy and that runtime, and nothing else (ExecuTorch's package needs torch). Leave the device alone
while it runs. Nets are measured in parts that fit into its memory, and results.json grows by a part at a time:
interrupted, the same command goes on.
"""

# slimformer copies this file into every bundle (`search.bundle`); it measures as `search.measure` does.

from __future__ import annotations

import argparse
import datetime
import gc
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

try:
    import numpy as np
except ImportError as missing:
    sys.exit(f"numpy cannot be loaded ({missing}): pip install numpy, and the runtime that plan.json names")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Net = Callable[[], object]
    Sides = Sequence[Any] | None

HERE = Path(__file__).resolve().parent
CHUNK_BYTES = 200e6  # files of nets that are held in memory and measured together, at most
CHUNK_OF_MEMORY = 0.1  # and this share of the device's memory: a loaded net takes more than its file
FILES_PROTOCOL = {  # for models that no plan speaks of
    "warmup": 5,
    "min_runs": 30,
    "settle": 1,
    "settle_ms": 10.0,
    "retakes": 8,
    "sample_ms": 0.2,
    "visit_ms": 5.0,
}
LINKS = 8  # nets in every part of them, which tell the speed at which each part was measured, if they are small enough
JUDGED_NETS, JUDGED_ROUNDS = 10, 5  # with fewer, a round's spread cannot be told from what is usual
DISTURBED_SPREAD = 3.0  # times the usual spread is that of a disturbed round ...
HARMLESS_SPREAD = 0.02  # ... unless it is below this
CLEAN_SHARE = 0.5  # of a visit's samples: with fewer that nothing interrupted, all of them count


def onnxruntime_net(path: Path, shape: Sides, threads: int) -> Net:
    """A call that runs one inference of an ONNX file with ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: noise(shape or session.get_inputs()[0].shape)}
    return lambda: session.run(None, feed)


def openvino_net(path: Path, shape: Sides, threads: int) -> Net:
    """The same with OpenVINO, of a folder in its own format or of an ONNX file."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path / "model.xml" if path.is_dir() else path))
    shape = shape or [side.get_length() if side.is_static else 1 for side in model.inputs[0].partial_shape]
    model.reshape(list(shape))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(noise(shape)))

    def run() -> object:
        request.infer()
        return request.get_output_tensor().data

    return run


def executorch_net(path: Path, shape: Sides, threads: int) -> Net:
    """The same of a .pte file with ExecuTorch, whose pool of threads is made before the first net is loaded."""
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    if not loaded:
        portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path.read_bytes())
    loaded.append(program)
    method = program.load_method("forward")
    images = torch.from_numpy(noise(shape or method.metadata.input_tensor_meta(0).sizes()))
    return lambda: method.execute([images])


def coreml_net(path: Path, shape: Sides, threads: int) -> Net:
    """The same of an .mlpackage folder with Core ML, on a Mac, which uses what units and threads it likes."""
    import coremltools

    model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.ALL)
    images = model.get_spec().description.input[0]
    feed = {images.name: noise(shape or images.type.multiArrayType.shape)}
    return lambda: model.predict(feed)


BUILD = {
    "onnxruntime": onnxruntime_net,
    "openvino": openvino_net,
    "executorch": executorch_net,
    "coreml": coreml_net,
}
MODULES = {  # what each needs, and the package that brings it
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "openvino": ("openvino", "openvino"),
    "executorch": ("executorch.runtime", "executorch torch"),
    "coreml": ("coremltools", "coremltools"),
}
NO_MEMORY = ("bad_alloc", "allocate memory")  # in a runtime's words: not the net's fault
loaded: list[object] = []  # ExecuTorch's programs, which its methods use


def check_installed(runtime: str) -> None:
    """End, with what to do in one line, where a runtime is not installed."""
    if runtime == "coreml" and platform.system() != "Darwin":
        sys.exit("Core ML runs on macOS alone")
    module, package = MODULES[runtime]
    try:
        importlib.import_module(module)
    except ImportError as error:
        sys.exit(f"{runtime} cannot be loaded ({one_line(error)}): pip install {package}")


def one_line(error: BaseException) -> str:
    """An error's words, in one line that is not too long."""
    return " ".join(str(error).split())[:200]


def version_of(runtime: str) -> str:
    """The version of what computes: Core ML's is that of macOS."""
    if runtime == "coreml":
        return platform.mac_ver()[0] or "none"
    if runtime == "executorch":
        return importlib.metadata.version(runtime)
    version: str = importlib.import_module(runtime).__version__
    return version.partition("-")[0]


def sha256_of(path: Path) -> str:
    """The sha256 of a file; of a folder that of the lines "SHA256 PATH" of its files, sorted by path."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))  # .DS_Store
    names = sorted(file.relative_to(path).as_posix() for file in files)
    lines = (f"{sha256_of(path / name)} {name}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def noise(shape: Sequence[Any]) -> np.ndarray:
    """Normal noise of this shape, always the same; a batch without a size is 1."""
    sides = [side if isinstance(side, int) else 1 for side in shape]
    return np.random.default_rng(0).standard_normal(sides, dtype=np.float32)


def interruptions() -> int:
    """How often the system took the core from this process; always 0 where it does not tell."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def sample(net: Net, calls: int, retakes: int) -> tuple[float, bool]:
    """The mean ms of some calls, and whether nothing interrupted them; else the fastest of several takes."""
    fastest = math.inf
    for _ in range(1 + retakes):
        before, start = interruptions(), time.perf_counter_ns()
        for _ in range(calls):
            net()
        ms = (time.perf_counter_ns() - start) / calls / 1e6
        if interruptions() == before:
            return ms, True
        fastest = min(fastest, ms)
    return fastest, False


def visit(net: Net, settle: int, calls: int, samples: int, retakes: int) -> float:
    """What a net takes in one round, in ms, after untimed calls: by its uninterrupted samples, if they are enough."""
    for _ in range(settle):
        net()
    taken = [sample(net, calls, retakes) for _ in range(samples)]
    clean = [ms for ms, is_clean in taken if is_clean]
    enough = len(clean) >= CLEAN_SHARE * len(taken)
    return statistics.median(clean if enough else [ms for ms, _ in taken])


def measure(
    nets: dict[str, Net], protocol: dict[str, Any], order: random.Random, progress: Callable[[int], None]
) -> tuple[dict[str, Any], int]:
    """Visit all nets in every round, each time in another order: for each net its calls and its samples in ms.

    At most half of the rounds, those that were disturbed, are measured again: so many were.
    """
    plans: dict[str, tuple[int, int, int]] = {}
    for name, net in nets.items():
        fastest = max(1e-4, min(sample(net, 1, 0)[0] for _ in range(protocol["warmup"])))
        calls = max(1, math.ceil(protocol["sample_ms"] / fastest))
        samples = math.ceil(protocol["visit_ms"] / (fastest * calls))
        samples = max(samples, math.ceil(protocol["min_runs"] / (protocol["rounds"] * calls)))
        settle = max(protocol["settle"], math.ceil(protocol.get("settle_ms", 0.0) / fastest))
        plans[name] = settle, calls, samples

    def a_round() -> list[float]:
        names = list(nets)
        order.shuffle(names)
        took = {name: visit(nets[name], *plans[name], protocol["retakes"]) for name in names}
        return [took[name] for name in nets]

    gc.collect()
    gc.disable()
    rounds, redone = [], 0
    for number in range(protocol["rounds"]):
        rounds.append(a_round())
        progress(number + 1)
    while redone < len(rounds) // 2:
        worst = worst_disturbed(np.array(rounds).T)
        if worst is None:
            break
        rounds[worst] = a_round()
        redone += 1
    gc.enable()
    found = {
        name: {"calls": plans[name][1] * plans[name][2], "samples_ms": list(samples)}
        for name, samples in zip(nets, zip(*rounds))  # noqa: B905 (Python 3.8)
    }
    return found, redone


def worst_disturbed(times: np.ndarray) -> int | None:
    """The round in which the nets' times spread most, if far more than is usual; None if no round was disturbed.

    `times` has a row a net and a column a round. A round's spread is the distance from the 10th to the 90th percentile,
    over the nets, of the logarithm of a net's time against its own median: what slows all nets alike leaves it as it
    is, what hits more than a tenth of them does not. Far more is `DISTURBED_SPREAD` times the median over the rounds
    and `HARMLESS_SPREAD`. Few nets or rounds are not judged.
    """
    nets, rounds = times.shape
    if nets < JUDGED_NETS or rounds < JUDGED_ROUNDS:
        return None
    low, high = np.percentile(np.log(times / np.median(times, axis=1, keepdims=True)), [10, 90], axis=0)
    worst = int(np.argmax(high - low))
    usual = max(float(np.median(high - low)), HARMLESS_SPREAD / DISTURBED_SPREAD)
    return worst if high[worst] - low[worst] > DISTURBED_SPREAD * usual else None


def machine() -> dict[str, Any]:
    """The device, in words."""
    told: dict[str, str] = {}
    information, board = Path("/proc/cpuinfo"), Path("/sys/firmware/devicetree/base/model")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    if board.is_file():
        told["board"] = board.read_text(errors="replace").strip("\0\n ")
    names = [told.get(name) for name in ("model name", "Model", "board", "Hardware")]
    cpu = next(filter(None, [*names, platform.processor(), platform.machine()]), "unknown")[:120]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    known = hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 0
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": cpu,
        "cores": cores,
        "memory_gb": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "governor": governor.read_text().strip() if governor.is_file() else "",
    }


def links_of(nets: list[dict[str, Any]], size: float) -> list[dict[str, Any]]:
    """The first net, and up to seven others at even steps that together take less than half of this size."""
    others = [net for net in nets[1 :: math.ceil(len(nets) / LINKS)] if net["size_bytes"] <= size / (2 * LINKS)]
    return [nets[0], *others[: LINKS - 1]]


def chunks_of(nets: list[dict[str, Any]], size: float) -> list[list[dict[str, Any]]]:
    """The nets in groups whose files together have at most this size; some nets, the first for one, are in all."""
    links = links_of(nets, size)
    of_links = sum(net["size_bytes"] for net in links)
    used = size
    chunks: list[list[dict[str, Any]]] = []
    for net in [net for net in nets if net not in links] or [nets[0]]:
        if used + net["size_bytes"] > size:
            chunks.append(list(links))
            used = of_links
        chunks[-1].append(net)
        used += net["size_bytes"]
    return [list({net["name"]: net for net in chunk}.values()) for chunk in chunks]


def differences(before: dict[str, Any], now: dict[str, Any], name: str) -> list[str]:
    """What an entry of results was measured with, where it is not what is here now."""
    there, here = before[name], now[name]
    if there == here:
        return []
    if not isinstance(there, dict):
        return [f"another {name}"]
    fields = [field for field in here if there.get(field) != here[field]]
    return [f"another {name} ({field} {there.get(field)!r}, now {here[field]!r})" for field in fields]


def json_of(content: bytes, name: str, remedy: str) -> dict[str, Any]:
    """What a file of the bundle holds; one that was cut short ends the script with what to do."""
    try:
        data: dict[str, Any] = json.loads(content)
    except ValueError:
        sys.exit(f"{name}: is not JSON, or was cut short; {remedy}")
    return data


def begun_results(content: bytes, runtime: str, results_path: Path) -> dict[str, Any]:
    """What results.json holds already, of this very plan, runtime and machine, or nothing yet."""
    results: dict[str, Any] = {
        "schema_version": 1,
        "plan": hashlib.sha256(content).hexdigest(),
        "runtime": {"name": runtime, "version": version_of(runtime)},
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "chunks": [],
        "redone": 0,
        "refused": {},
    }
    if results_path.exists():
        before = json_of(results_path.read_bytes(), "results.json", "move it away, and all is measured again")
        differ = [what for name in ("plan", "runtime", "machine") for what in differences(before, results, name)]
        if differ:
            sys.exit(f"results.json is there already, of {', '.join(differ)}: move it away first")
        for name in ("chunks", "redone", "refused"):
            results[name] = before.get(name, results[name])
    return results


def running(path: Path, net: dict[str, Any], plan: dict[str, Any], refused: dict[str, str]) -> dict[str, Net]:
    """A net of the plan that runs here, by its name; or nothing, and `refused` says why."""
    if sha256_of(path) != net["sha256"]:
        sys.exit(f"{path}: was changed or cut short; copy the bundle again")
    try:
        run = BUILD[plan["runtime"]](path, net["input_shape"], plan["threads"])
        run()
    except Exception as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            sys.exit(f"{path}: there is not memory enough; load fewer nets at once, with --most-mb")
        refused[net["name"]] = f"{type(error).__name__}: {one_line(error)}"
        return {}
    return {net["name"]: run}


def measure_plan(folder: Path, chunk_bytes: float) -> None:
    """Measure what plan.json lists, and write results.json after every chunk; nets that do not run are noted there.

    The first net that runs is in every chunk, and further ones where they find room.
    """
    if not (folder / "plan.json").is_file():
        sys.exit(f"{folder}: holds no plan.json; copy the whole bundle, or name models: python measure.py a.onnx")
    content, results_path = (folder / "plan.json").read_bytes(), folder / "results.json"
    plan = json_of(content, "plan.json", "copy the bundle again")
    check_installed(plan["runtime"])
    results = begun_results(content, plan["runtime"], results_path)
    refused, nets = results["refused"], plan["nets"]
    done = {name for chunk in results["chunks"] for name in chunk}
    first: dict[str, Net] = {}
    while not first and not all(net["name"] in refused for net in nets):
        reference = next(net for net in nets if net["name"] not in refused)
        first = running(folder / reference["file"], reference, plan, refused)
    if not first:
        sys.exit(f"none of {len(nets)} nets runs here, the first because: {next(iter(refused.values()))}")
    order, rounds = random.Random(plan["seed"]), plan["protocol"]["rounds"]
    chunks = chunks_of(nets[nets.index(reference) :], chunk_bytes)
    for number, chunk in enumerate(chunks, start=1):
        if all(net["name"] in done or net["name"] in refused for net in chunk):
            continue
        built = dict(first)
        for net in chunk[1:]:
            if net["name"] not in refused:
                built.update(running(folder / net["file"], net, plan, refused))
            say(f"part {number} of {len(chunks)}: {len(built)} of {len(chunk)} nets loaded")
        if not done.issuperset(built):
            found, redone = measure(
                built,
                plan["protocol"],
                order,
                lambda done: say(f"part {number} of {len(chunks)}: round {done} of {rounds}"),  # noqa: B023
            )
            results["chunks"].append(found)
            results["redone"] += redone
            done.update(built)
        part = results_path.with_name("results.json.part")
        part.write_text(json.dumps(results))
        part.replace(results_path)
    print(f"\nWritten: {results_path}", file=sys.stderr)
    for name, reason in refused.items():
        print(f"does not run here: {name}: {reason}", file=sys.stderr)


def measure_files(files: list[str], runtime: str, threads: int, rounds: int) -> None:
    """Print the median latency of models, measured in the same rounds."""
    check_installed(runtime)
    protocol = {**FILES_PROTOCOL, "rounds": rounds}
    nets: dict[str, Net] = {}
    for file in files:
        try:
            run = BUILD[runtime](Path(file), None, threads)
            run()
            nets[file] = run
        except Exception as error:
            print(f"does not run here: {file}: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
    if not nets:
        sys.exit(2)
    found, _ = measure(nets, protocol, random.Random(0), lambda done: say(f"{done} of {rounds}"))
    print(file=sys.stderr)
    for file, timing in found.items():
        low, middle, high = np.percentile(timing["samples_ms"], [10, 50, 90])
        print(f"{middle:.3f} ms ({low:.3f} to {high:.3f})  {file}")


def say(text: str) -> None:
    """Progress, on a line of its own that is written over."""
    print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description="Measure the nets of a slimformer bundle on this device.")
    parser.add_argument("models", nargs="*", help="files to measure, in the place of the bundle's nets")
    parser.add_argument("--runtime", choices=sorted(BUILD), default="onnxruntime", help="for models")
    parser.add_argument("--threads", type=int, default=1, help="for models")
    parser.add_argument("--rounds", type=int, default=30, help="for models")
    parser.add_argument("--most-mb", type=float, help="of nets that are loaded at once")
    words = parser.parse_args()
    if words.threads < 1 or words.rounds < 1:
        parser.error("--threads and --rounds must be 1 or more")
    if words.models:
        measure_files(words.models, words.runtime, words.threads, words.rounds)
    else:
        memory = machine()["memory_gb"] * 2**30 or math.inf
        measure_plan(HERE, 1e6 * words.most_mb if words.most_mb else min(CHUNK_BYTES, CHUNK_OF_MEMORY * memory))


if __name__ == "__main__":
    main()
