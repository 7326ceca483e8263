"""Other people's quantizers: run in the environment of their toolchain, checked and published like our own work."""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from qlangchain.artifacts.locks import hold
from qlangchain.artifacts.quantization import read_quantization
from qlangchain.artifacts.source import read_config
from qlangchain.errors import InvalidInputError, ProductionError, QlangchainWarning, StoreLockedError
from qlangchain.produce.decoders import refuse_quantized
from qlangchain.quantizer.weights import Weights
from qlangchain.toolchains import environments, pins, worker
from qlangchain.toolchains.worker import Progress

_ADAPTERS: Final = "qlangchain.produce.adapters"
# What each tool makes here, and the module that drives it.
TOOLS: Final = {
    "gptqmodel": (("gptq", "awq"), f"{_ADAPTERS}.gptqmodel:quantize"),
    "autoawq": (("awq",), f"{_ADAPTERS}.autoawq:quantize"),
    "auto-gptq": (("gptq",), f"{_ADAPTERS}.auto_gptq:quantize"),
    "llm-compressor": (("w8a8", "w8a16"), f"{_ADAPTERS}.llm_compressor:quantize"),
}
_SAMPLES, _LENGTH = 128, 512


def check(tool: str, method: str) -> None:
    """Raise `InvalidInputError` where a tool is not known or does not make this; warn where nobody maintains it."""
    if tool not in TOOLS or method not in TOOLS[tool][0]:
        fitting = [name for name, (methods, _) in TOOLS.items() if method in methods]
        raise InvalidInputError(
            f"{tool!r} does not make {method.upper()} here.",
            hint=f"Leave out tool=, or pass {' or '.join(map(repr, fitting))}.",
        )
    if not pins.find(tool).maintained:
        warnings.warn(
            f"{tool} is no longer maintained; qlangchain's own {method.upper()} needs no tool=.",
            QlangchainWarning,
            stacklevel=4,
        )


def make(
    tool: str,
    method: str,
    weights: Weights,
    target: Path,
    *,
    bits: int,
    group_size: int,
    desc_act: bool = False,
    texts: Sequence[str] | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    memory_limit: int | None = None,
) -> dict[str, Any]:
    """Have a tool quantize `weights` into the new directory `target`, and return what its check found.

    Raises `UnsupportedModelError` for weights that are quantized, `MissingDependencyError` with the command that makes
    its environment, `ProductionError` where it fails or what it made does not pass the check, and `CancelledError`.
    """
    refuse_quantized(read_config(weights.directory))
    environment = environments.require(tool)
    source = str(weights.directory.absolute())
    arguments: dict[str, Any] = {"source": source}
    if tool == "autoawq":
        from qlangchain.produce import calibration

        chosen = calibration.default_texts() if texts is None else list(texts)
        arguments |= {"texts": chosen, "samples": samples or _SAMPLES, "length": sequence_length or _LENGTH}
    else:
        arguments["samples"] = _cut(source, texts, samples, sequence_length)
    if tool == "llm-compressor":
        arguments["scheme"] = method.upper()
    else:
        arguments["group_size"] = group_size
    if tool == "gptqmodel":
        arguments["method"] = method
    if tool in ("gptqmodel", "auto-gptq"):
        arguments |= {"bits": bits, "desc_act": desc_act}
    target = target.absolute()
    room = target.with_name(f".{target.name}.{tool}")
    made, scratch = room / "made", room / "scratch"
    try:
        with hold(room, "work", what=f"making {target.name}", timeout=1.0):
            for place in (made, scratch):  # these tools cannot go on where they were
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
            arguments["target"] = str(made)
            worker.run(
                TOOLS[tool][1], arguments,
                python=environment.python, progress=progress, cancel=cancel, memory_limit=memory_limit,
                directory=scratch,  # they leave logs and swap files where they are started
            )  # fmt: skip
            found = _checked(made, method, weights, progress, cancel)
            for path in made.rglob("*"):
                if path.is_file():
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
            os.replace(made, target)
    except OSError as error:
        raise ProductionError(f"{target} could not be made: {error}.", hint="Nothing was published.") from error
    except StoreLockedError:
        raise  # the place is another's
    except BaseException:
        shutil.rmtree(room, ignore_errors=True)
        raise
    shutil.rmtree(room, ignore_errors=True)
    return {**found, "tool": tool}


def _cut(source: str, texts: Sequence[str] | None, samples: int | None, sequence_length: int | None) -> list[list[int]]:
    """The samples that our own producers would calibrate on."""
    found: list[list[int]] = worker.run(
        "qlangchain.produce.jobs:cut",
        {"source": source, "texts": texts, "samples": samples, "sequence_length": sequence_length},
    )
    return found


def _checked(
    made: Path,
    method: str,
    weights: Weights,
    progress: Callable[[Progress], None] | None,
    cancel: threading.Event | None,
) -> dict[str, Any]:
    if method in ("w8a8", "w8a16"):
        quantization = read_quantization(read_config(made))
        if quantization.format != method.upper():
            raise ProductionError(
                f"What was made is {quantization.format}, not {method.upper()}; it was not published.",
                hint="Choose another method.",
            )
        job, more = "verify_int8", {"smoothed": method == "w8a8"}
    else:
        job, more = "verify", {}
    found: dict[str, Any] = worker.run(
        f"qlangchain.produce.jobs:{job}", {"target": str(made), "source": str(weights.directory), **more},
        progress=progress, cancel=cancel,
    )  # fmt: skip
    if problems := found.pop("problems"):
        raise ProductionError(
            f"What was made does not pass its check, so it was not published: {'; '.join(problems[:3])}",
            hint="Leave out tool= for qlangchain's own producer, or pass more calibration text.",
        )
    return found
