"""llama.cpp's quantizer as a job for a child process: native code that ends its process on some inputs.

It runs in any environment that has llama-cpp-python, ours or a toolchain's, and needs nothing else of ours.
"""

from __future__ import annotations

import collections
import ctypes
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from qlangchain.errors import CancelledError, DiskFullError, ProductionError

_TENSOR = re.compile(rb"\[ *(\d+)/ *(\d+)\]")


def quantize(
    source: str,
    target: str,
    file_type: int,
    threads: int,
    imatrix: str | None = None,
    progress: Any = None,
    cancel: threading.Event | None = None,
) -> None:
    """Quantize the GGUF file `source` to `target`, of llama.cpp's file type number `file_type`.

    `imatrix` is the path of an importance matrix. Raises `ProductionError` with llama.cpp's last words,
    `DiskFullError` and `CancelledError`.
    """
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]

    lines: collections.deque[bytes] = collections.deque(maxlen=40)

    @llama_cpp.llama_log_callback  # type: ignore[misc, untyped-decorator, unused-ignore]
    def log(level: int, text: bytes, data: Any) -> None:
        lines.append(text)
        sys.stderr.write(text.decode("utf-8", "replace"))
        if progress is not None and (match := _TENSOR.search(text)):
            progress("quantize", int(match[1]), int(match[2]))

    llama_cpp.llama_log_set(log, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, threads
    kept = _entries(llama_cpp, Path(imatrix)) if imatrix else None
    if kept is not None:
        params.imatrix = kept[0]
    result: list[int] = []

    def work() -> None:
        result.append(
            int(llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)))
        )

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        if cancel is not None and cancel.is_set():
            raise CancelledError("Quantizing was cancelled.", hint="")
    if result != [0]:
        said = b"".join(lines).decode("utf-8", "replace").strip()
        if "No space left on device" in said:
            raise DiskFullError(f"The disk of {target} is full; nothing was written.", hint="Free some disk.")
        raise ProductionError(
            f"llama.cpp's quantizer ended with {result[0] if result else 'a crash'}. Its last lines: {said[-600:]}",
            hint="Choose another format, such as Q4_0 or Q8_0.",
        )


def _entries(llama_cpp: Any, path: Path) -> tuple[Any, Any]:
    """The matrix as llama.cpp takes it, ended by an entry without a name, and what must stay alive for it."""
    from qlangchain.produce.imatrix import read

    values = read(path).values
    array = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
    alive = []
    for entry, (name, numbers) in zip(array, values.items(), strict=False):
        data = (ctypes.c_float * numbers.size).from_buffer_copy(numbers.astype("<f4").tobytes())
        alive.append(data)
        entry.name, entry.size = name.encode(), numbers.size
        entry.data = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))
    return ctypes.cast(array, ctypes.POINTER(llama_cpp.llama_model_imatrix_data)), (array, alive)
