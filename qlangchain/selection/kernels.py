"""Which format runs on which runtime and processor, from `kernels.toml`; pure."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from qlangchain.selection.formats import canonical, engine_of, table
from qlangchain.types import Gpu

_FILE: Final = "kernels.toml"
_GENERATIONS: Final = {
    (5, 0): "Maxwell", (7, 0): "Volta", (7, 5): "Turing", (8, 0): "Ampere", (8, 9): "Ada", (9, 0): "Hopper",
}  # fmt: skip
# Servers that know better than any table.
_UNKNOWABLE: Final = frozenset(("remote", "scripted"))


def supported(
    format: str,
    runtime: str,
    gpu: Gpu | None = None,
    *,
    method: str | None = None,
    flags: frozenset[str] = frozenset(),
    symmetric: bool = True,
    desc_act: bool = False,
) -> str | None:
    """Return None where `runtime` has a kernel for `format` on this GPU (None: on the CPU), or else why not.

    `flags` are the CPU's instruction sets. What is not known of the hardware (a compute capability, no flags at
    all) is not held against it: a machine that is only imagined can be planned for. `symmetric` and `desc_act` are
    a GPTQ checkpoint's, whose odd ones vLLM refuses on every platform.
    """
    name, engine = canonical(format, method), engine_of(runtime)
    # A runtime of somebody else's knows better than any table, too.
    if engine in _UNKNOWABLE or not any(one["runtime"] == engine for one in table(_FILE)["row"]):
        return None
    row = _row(engine, name)
    if row is None:
        return f"{runtime} has no kernel for {name} that is known here"
    advice = f"; take {row['instead']}" if "instead" in row else ""
    if "refused" in row:
        return f"{row['refused']}{advice}"
    if engine == "vllm" and name.startswith("GPTQ") and (desc_act or not symmetric):
        odd = "desc_act" if desc_act else "asymmetric zeros"
        return f"vLLM refuses GPTQ with {odd} on every platform; take transformers for it"
    if gpu is None:
        why = _on_cpu(row, flags)
    elif gpu.vendor == "nvidia":
        why = _on_nvidia(row, gpu)
    else:
        why = "" if row.get(gpu.vendor) else f"on {gpu.name}"
    return f"{runtime} has no kernel for {name} {why}{advice}" if why else None


@functools.cache
def _row(engine: str, name: str) -> Mapping[str, Any] | None:
    data = table(_FILE)
    for row in data["row"]:
        formats = {format for entry in row["formats"] for format in data["formats"].get(entry, [entry])}
        if row["runtime"] == engine and formats & {name, "*"}:
            return dict(row)
    return None


def _on_cpu(row: Mapping[str, Any], flags: frozenset[str]) -> str:
    if not row.get("cpu"):
        return "on a CPU"
    wanted = row.get("cpu_flags", [])
    if wanted and flags and not flags & set(wanted):
        return f"on a CPU without {' or '.join(wanted)}"
    return ""


def _on_nvidia(row: Mapping[str, Any], gpu: Gpu) -> str:
    if "nvidia" not in row:
        return "on NVIDIA's GPUs"
    least, most, has = tuple(row["nvidia"]), tuple(row.get("nvidia_most", (99, 0))), gpu.compute_capability
    if has is None or least <= has <= most:
        return ""
    bound = f"needs {_shown(least)} or higher" if has < least else f"ends at {_shown(most)}"
    return f"on {gpu.name}, compute capability {has[0]}.{has[1]}: it {bound}"


def _shown(capability: tuple[int, ...]) -> str:
    generation = _GENERATIONS.get((capability[0], capability[1]))
    return f"{capability[0]}.{capability[1]}" + (f" ({generation})" if generation else "")
