"""Numbers as a reader wants them: milliseconds, percent, counts, minutes, and what an action did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.files import ActionRecord, ModelRecord

_METHOD_NAMES = {
    "search": "search",
    "frontier": "frontier slimming",
    "exact": "exact solver",
    "evolution": "evolution",
    "random_search": "random search",
    "uniform": "uniform scaling",
    "random": "random",
}
_BLOCK_NAMES = {
    "mb4d": "MB4D",
    "mb3d": "MB3D",
    "separable_conv": "separable conv",
    "conv": "conv",
    "identity": "Identity",
}

_IMPORTANCES = {
    "alpha": "the probability of all computing candidates over that of Identity",
    "removal": "how much the loss rises where this block alone is left out, batch norm re-fitted",
    "taylor": "the mean square over images of the loss's gradient in a gate on the block's branch",
}


def ms_text(value_ms: float) -> str:
    """Milliseconds with about three digits, such as '0.784', '2.05' or '14.1'."""
    if value_ms < 1:
        return f"{value_ms:.3f}"
    return f"{value_ms:.2f}" if value_ms < 10 else f"{value_ms:.1f}"


def budget_text(budget_ms: float) -> str:
    """A budget as a person wrote it, with at least one decimal: '2.0', '0.25'."""
    text = f"{budget_ms:.4g}"
    return text if "." in text or "e" in text else f"{text}.0"


def count_text(value: float) -> str:
    """A large number with a unit: '950', '812 k', '1.23 M', '24.1 M', '1.31 G'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:.{digits}f} {unit}"
    return f"{value:g}"


def points_text(points: float) -> str:
    """A difference in percentage points with its sign, '+0.2' or '\N{MINUS SIGN}0.7'."""
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")


def minutes_text(seconds: float) -> str:
    """A wall time in minutes, to the second where it is short."""
    minutes = seconds / 60
    return f"{minutes:.2f}" if minutes < 1 else f"{minutes:.1f}"


def method_text(method: str) -> str:
    """A method's name in a sentence."""
    if method.startswith("timm:"):
        return method.replace(":", "'s ")
    return _METHOD_NAMES.get(method, method.replace("_", " "))


def block_text(name: str) -> str:
    """The name of a block type or candidate in a legend."""
    return _BLOCK_NAMES.get(name, name.replace("_", " "))


def importance_text(kind: str) -> str:
    """What a score of this kind is."""
    return _IMPORTANCES[kind]


def variant_text(model: ModelRecord, models: Sequence[ModelRecord]) -> str:
    """The method's name, with how the weights started where that method has models of both kinds."""
    starts = {other.start for other in models if other.method == model.method}
    return method_text(model.method) + (f" ({model.start} weights)" if len(starts) > 1 else "")


def action_text(action: ActionRecord | None) -> str:
    """What a step did, in words; the largest architecture has no action."""
    if action is None:
        return "largest architecture"
    if action.kind == "skip_path":
        return f"skip stage {action.stage} block {action.block}"
    if action.kind == "drop_first_3d":
        return "drop the first MB3D"
    if action.kind == "narrow_stage":
        return f"narrow stage {action.stage} to {action.width_channels} channels"
    if action.kind == "change_candidate":
        return f"change stage {action.stage} block {action.block} to {block_text(action.candidate or '')}"
    numbers = [f"{name} {value}" for name, value in action.model_dump().items() if name != "kind" and value is not None]
    return " ".join([action.kind.replace("_", " "), *numbers])


def action_kind_text(kind: str) -> str:
    """The name of a kind of action in a legend."""
    names = {
        "skip_path": "skip a MetaPath",
        "drop_first_3d": "drop the first MB3D",
        "narrow_stage": "narrow a stage",
        "change_candidate": "change a block",
    }
    return names.get(kind, kind.replace("_", " "))


def machine_text(machine: Mapping[str, object]) -> str:
    """A machine in one line, such as 'AMD EPYC 7B13, 2 cores, 24 GB, Linux'."""
    units = {"cores": " cores", "memory_gb": " GB"}
    parts = []
    for name, value in machine.items():
        if value not in (None, "", 0):
            parts.append((f"{value:g}" if isinstance(value, float) else str(value)) + units.get(name, ""))
    return ", ".join(parts)
