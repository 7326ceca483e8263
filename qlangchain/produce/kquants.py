"""K-quants and IQ-quants: an exact intermediate file, then llama.cpp's own quantizer in a child process.

It comes from llama-cpp-python here or in an environment of its own (`qlangchain env create llama-cpp-python`), or
from a `llama-quantize` on PATH. With an importance matrix it also writes the plain formats.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.errors import ArtifactError, InvalidInputError, MissingDependencyError, ProductionError
from qlangchain.produce import gguf_check
from qlangchain.produce import imatrix as matrices
from qlangchain.produce.gguf import (
    FILE_TYPES,
    IMATRIX_FILE_TYPES,
    K_FILE_TYPES,
    GgufPlan,
    plan_gguf,
    verify_gguf,
    write_gguf,
)
from qlangchain.produce.gguf_file import check_room, moved, workroom
from qlangchain.toolchains import environments, worker

logger = logging.getLogger(__name__)

FORMATS = tuple(K_FILE_TYPES)
TOOLCHAIN = "llama-cpp-python"
_JOB = "qlangchain.produce.llama_quantize:quantize"
NUMBERS = FILE_TYPES | K_FILE_TYPES | IMATRIX_FILE_TYPES
# With an importance matrix llama.cpp weighs the errors of these as well; the wider ones round without choice.
WEIGHED_PLAIN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")


@dataclass(frozen=True, slots=True)
class Quantizer:
    """llama.cpp's quantizer: a `python` that has llama-cpp-python, or the path of a `llama-quantize`."""

    python: Path | None = None
    binary: str | None = None


def produce_k_gguf(
    source: Path,
    target: Path,
    format: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    name: str | None = None,
    imatrix: Path | None = None,
    cancel: threading.Event | None = None,
) -> Path:
    """Like `produce_gguf`, for the formats in `K_FILE_TYPES`, and with the file of an importance matrix for more.

    The intermediate file has the precision of the weights (BF16 for BF16), so nothing is lost on the way; it
    needs that much disk in the target's directory for a while. `progress` counts its bytes twice: once for writing
    it, once for quantizing it. Also raises `InvalidInputError` where the matrix belongs to another model.
    """
    check_matrix(format, imatrix is not None)
    tool = quantizer()
    plan = _whole(source, name)
    if imatrix is not None:
        matrices.read(imatrix).check({layout.name: layout.shape for layout, _ in plan.tensors})
    for notice in notices(plan):
        logger.warning("%s: %s", source.name, notice)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_room(target.parent, 2 * plan.nbytes)  # the result is smaller than the intermediate file

    def report(done: int) -> None:
        if progress:
            progress(done, 2 * plan.nbytes)

    with (
        workroom(target) as room,
        moved(room / "out.gguf", target, plan.nbytes, lambda path: _verify(path, plan, format)) as temporary,
    ):
        whole = room / "whole.gguf"
        with whole.open("xb") as file:
            write_gguf(plan, file, lambda done, _: report(done))
        verify_gguf(whole, plan)
        _run(
            tool, whole, temporary, format, imatrix,
            lambda share: report(plan.nbytes + int(share * plan.nbytes)), cancel,
        )  # fmt: skip
    return target


def check_format(format: str) -> None:
    """Raise `InvalidInputError` where a format is not known."""
    if format not in NUMBERS:
        raise InvalidInputError(f"The GGUF format {format!r} is not known.", hint=f"Known: {', '.join(NUMBERS)}.")


def check_matrix(format: str, there: bool) -> None:
    """Raise `InvalidInputError` where a format needs an importance matrix, or has no use for one."""
    if format in IMATRIX_FILE_TYPES and not there:
        raise InvalidInputError(
            f"{format} has so few bits that it needs an importance matrix.",
            hint="Pass imatrix=True, a file of calibration text, or a ready importance matrix.",
        )
    if there and format not in (*K_FILE_TYPES, *IMATRIX_FILE_TYPES, *WEIGHED_PLAIN):
        known = [*K_FILE_TYPES, *IMATRIX_FILE_TYPES, *WEIGHED_PLAIN]
        raise InvalidInputError(
            f"An importance matrix changes nothing in {format}.",
            hint=f"Leave it out, or choose one of {', '.join(known)}.",
        )


def available() -> bool:
    """Whether a quantizer is installed."""
    with contextlib.suppress(MissingDependencyError):
        return quantizer() is not None
    return False


def quantizer() -> Quantizer:
    """The quantizer: llama-cpp-python here or in its own environment, else a `llama-quantize` on PATH.

    Raises `MissingDependencyError` where none is installed.
    """
    if importlib.util.find_spec("llama_cpp") is not None:
        return Quantizer(python=Path(sys.executable))
    with contextlib.suppress(MissingDependencyError):  # a setting may name an interpreter that is gone
        if found := environments.locate(TOOLCHAIN):
            return Quantizer(python=found.python)
    if binary := shutil.which("llama-quantize"):
        return Quantizer(binary=binary)
    raise MissingDependencyError(
        "K-quants are made by llama.cpp's own quantizer, and neither llama-cpp-python nor llama-quantize is here.",
        hint="pip install 'qlangchain[llama-cpp-python]' (it needs a C++ compiler), or choose Q4_0, Q5_1 or Q8_0, "
        "which need neither.",
    )


def _whole(source: Path, name: str | None) -> GgufPlan:
    """The plan of the intermediate file, in the precision of the weights."""
    plan = plan_gguf(source, "F32", name=name)
    dtypes = plan.checkpoint.dtypes()
    return plan if len(dtypes) != 1 else plan_gguf(source, dtypes.pop(), name=name)


def notices(plan: GgufPlan) -> list[str]:
    """What the user should know: the plan's own notices, and tensors that cannot have the type that was asked for."""
    odd = [layout for layout, _ in plan.tensors if len(layout.shape) == 2 and layout.shape[-1] % 256]
    if not odd:
        return list(plan.notices)
    widths = ", ".join(f"{width:,}" for width in sorted({layout.shape[-1] for layout in odd}))
    return [
        *plan.notices,
        f"{len(odd)} of {len(plan.tensors)} tensors, such as {odd[0].name}, have columns ({widths}) that do not divide "
        f"by 256 and get larger types: the file will be larger than its name says.",
    ]


def _run(
    tool: Quantizer,
    whole: Path,
    target: Path,
    format: str,
    imatrix: Path | None,
    share: Callable[[float], None],
    cancel: threading.Event | None,
) -> None:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if tool.python is None:
        _run_binary(str(tool.binary), whole, target, format, imatrix, threads)
        return
    # llama-cpp-python may be importable by a path of this process's own.
    ours = os.pathsep.join(path for path in sys.path if path)
    worker.run(
        _JOB,
        {
            "source": str(whole), "target": str(target), "file_type": NUMBERS[format], "threads": threads,
            "imatrix": str(imatrix.resolve()) if imatrix else None,
        },
        python=tool.python,
        progress=lambda seen: share(seen.done / max(1, seen.total)),
        cancel=cancel,
        environment={"PYTHONPATH": ours} if tool.python == Path(sys.executable) else None,
    )  # fmt: skip
    if not target.is_file():
        raise ProductionError("llama.cpp's quantizer wrote nothing.", hint="Choose another format, such as Q4_0.")


def _run_binary(binary: str, whole: Path, target: Path, format: str, imatrix: Path | None, threads: int) -> None:
    weights = ["--imatrix", str(imatrix)] if imatrix else []
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(
            [binary, *weights, str(whole), str(target), format, str(threads)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        log.seek(0)
        text = log.read().decode("utf-8", "replace").strip()
    if done.returncode != 0 or not target.is_file():
        if "No space left on device" in text:
            raise OSError(28, os.strerror(28))
        raise ProductionError(
            f"llama.cpp's quantizer ended with {done.returncode}. Its last lines: {text[-600:]}",
            hint="Choose another format, such as Q4_0 or Q8_0.",
        )


def _verify(path: Path, plan: GgufPlan, format: str) -> None:
    try:
        header = read_gguf_header(path)
        check_servable(header)
    except ArtifactError as error:
        raise ProductionError(f"The quantizer's file is not right: {error.message}") from error
    expected = {layout.name: layout.shape for layout, _ in plan.tensors}
    if {tensor.name: tensor.shape[::-1] for tensor in header.tensors} != expected:
        raise ProductionError("The quantizer's file does not hold the model's tensors.")
    if header.metadata.get("general.file_type") != NUMBERS[format]:
        raise ProductionError(f"The quantizer's file is not {format}.")
    gguf_check.check_errors(path, plan)
