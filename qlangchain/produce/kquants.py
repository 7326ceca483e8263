"""K-quants and IQ-quants: an exact intermediate file, then llama.cpp's own quantizer in a child process.

The quantizer is native code that ends its process on some inputs, so it never runs in the caller's. It comes
from llama-cpp-python, or from a `llama-quantize` on PATH.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.errors import ArtifactError, MissingDependencyError, ProductionError
from qlangchain.produce.gguf import K_FILE_TYPES, GgufPlan, plan_gguf, verify_gguf, write_gguf
from qlangchain.produce.gguf_file import check_room, published

logger = logging.getLogger(__name__)

FORMATS = tuple(K_FILE_TYPES)


def produce_k_gguf(
    source: Path,
    target: Path,
    format: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    name: str | None = None,
) -> Path:
    """Like `produce_gguf`, for the formats in `K_FILE_TYPES`.

    The intermediate file has the precision of the weights (BF16 for BF16), so nothing is lost on the way; it
    needs that much disk in the target's directory for a while. `progress` covers it, and its last call comes
    before the quantizer's work.
    """
    command = quantizer()
    plan = plan_gguf(source, _precision(source), name=name)
    for notice in (*plan.notices, *_fallback_notices(plan)):
        logger.warning("%s: %s", source.name, notice)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_room(target.parent, 2 * plan.nbytes)  # the result is smaller than the intermediate file
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=target.parent) as scratch:
        whole = Path(scratch) / "whole.gguf"
        with whole.open("xb") as file:
            write_gguf(plan, file, progress)
        verify_gguf(whole, plan)
        with published(target, plan.nbytes, lambda path: _verify(path, plan, format)) as temporary:
            _run(command, whole, temporary, format)
    return target


def available() -> bool:
    """Whether a quantizer is installed."""
    return importlib.util.find_spec("llama_cpp") is not None or shutil.which("llama-quantize") is not None


def quantizer() -> list[str]:
    """The command of the quantizer: our child around llama-cpp-python, else a `llama-quantize` on PATH.

    Raises `MissingDependencyError` where neither is installed.
    """
    if importlib.util.find_spec("llama_cpp") is not None:
        return [sys.executable, "-P", "-m", "qlangchain.produce.kquants"]
    if binary := shutil.which("llama-quantize"):
        return [binary]
    raise MissingDependencyError(
        "K-quants are made by llama.cpp's own quantizer, and neither llama-cpp-python nor llama-quantize is here.",
        hint="pip install 'qlangchain[llama-cpp-python]' (it needs a C++ compiler), or choose Q4_0, Q5_1 or Q8_0, "
        "which need neither.",
    )


def _precision(source: Path) -> str:
    from qlangchain.produce.checkpoint import open_checkpoint

    dtypes = open_checkpoint(source).dtypes()
    return dtypes.pop() if len(dtypes) == 1 else "F32"


def _fallback_notices(plan: GgufPlan) -> list[str]:
    odd = [layout for layout, _ in plan.tensors if len(layout.shape) == 2 and layout.shape[-1] % 256]
    if not odd:
        return []
    return [f"{len(odd)} tensors, such as {odd[0].name}, have columns that do not divide by 256 and get larger types."]


def _run(command: list[str], whole: Path, target: Path, format: str) -> None:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ours = command[0] == sys.executable
    if ours:
        request = json.dumps(
            {"source": str(whole), "target": str(target), "file_type": K_FILE_TYPES[format], "threads": threads}
        )
    else:
        command, request = [*command, str(whole), str(target), format, str(threads)], ""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} if ours else None
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(
            command, input=request.encode(), stdout=log, stderr=subprocess.STDOUT, env=environment, check=False
        )
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
    if header.metadata.get("general.file_type") != K_FILE_TYPES[format]:
        raise ProductionError(f"The quantizer's file is not {format}.")


def _child() -> int:
    """Quantize what a JSON object on stdin names; the exit status is llama.cpp's own."""
    import ctypes

    import llama_cpp  # type: ignore[import-not-found, unused-ignore]

    request = json.load(sys.stdin)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = request["file_type"]
    params.nthread = request["threads"]
    return int(
        llama_cpp.llama_model_quantize(
            os.fsencode(request["source"]), os.fsencode(request["target"]), ctypes.byref(params)
        )
    )


if __name__ == "__main__":
    sys.exit(_child())
