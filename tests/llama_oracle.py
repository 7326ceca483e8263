"""What llama.cpp itself says that a model takes. Run as a program: it may be ended by an assertion of its own.

It reads one JSON object from stdin and writes one to stdout. With `context`, `slots`, `type_k`, `type_v`, `unified` and
`ubatch` it loads the model of `path` without allocating anything (`no_alloc`), so that 70B take a second, and tells
llama.cpp's own figures; the settings are those with which qlangchain starts an engine. With `quantize`, a list of
numbers of file types, it tells the size in MiB that llama.cpp's quantizer would make of the file (`dry_run`).
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from typing import Any

SIZES = {
    "kv": r"llama_kv_cache: +size = +([\d.]+) MiB",
    "recurrent": r"llama_memory_recurrent: +size = +([\d.]+) MiB",
    "compute": r"compute buffer size = +([\d.]+) MiB",
    "output": r"output buffer size = +([\d.]+) MiB",
}


def figures(log: str) -> dict[str, float]:
    """Sum up what the log says, in MiB."""
    return {name: round(sum(map(float, re.findall(pattern, log))), 2) for name, pattern in SIZES.items()}


def breakdown(library: Any, context: Any) -> dict[str, int]:
    """What llama.cpp counts for the model and its contexts, in bytes: `llama_get_memory_breakdown`.

    The function is C++: it fills a `std::map` from buffer types to three sizes, whose red-black tree is read here
    as libstdc++ lays it out (colour, parent, left, right, then key and value).
    """
    function = library.llama_cpp._lib["_Z26llama_get_memory_breakdownPK13llama_context"]
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p]
    tree = (ctypes.c_uint64 * 6)()
    function(ctypes.addressof(tree), context)
    total = {"weights": 0, "context": 0, "graph": 0}
    nodes = [tree[2]]
    while nodes:
        if not (address := nodes.pop()):
            continue
        node = (ctypes.c_uint64 * 8).from_address(address)
        nodes += [node[2], node[3]]
        for name, value in zip(total, node[5:8], strict=True):
            total[name] += value
    return total


def quantized(library: Any, asked: dict[str, Any], lines: list[bytes]) -> dict[str, float]:
    """The size that each type of file would have, in MiB, by llama.cpp's quantizer; 0 where it refuses."""
    found = {}
    for number in asked["quantize"]:
        del lines[:]
        options = library.llama_model_quantize_default_params()
        options.ftype, options.dry_run, options.allow_requantize, options.nthread = number, True, True, 1
        library.llama_model_quantize(asked["path"].encode(), b"/dev/null", ctypes.byref(options))
        log = b"".join(lines).decode(errors="replace")
        found[str(number)] = next(map(float, re.findall(r"quant size +=\s+([\d.]+) MiB", log)), 0.0)
    return found


def main() -> None:
    """Load without allocating and print the figures."""
    import llama_cpp

    asked: dict[str, Any] = json.load(sys.stdin)
    lines: list[bytes] = []

    @llama_cpp.llama_log_callback
    def collect(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        lines.append(text)

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    if "quantize" in asked:
        print(json.dumps(quantized(llama_cpp, asked, lines)))
        return
    load = llama_cpp.llama_model_default_params()
    load.no_alloc, load.load_mode, load.n_gpu_layers = True, 0, 0
    load.use_extra_bufts = bool(asked.get("repack", False))
    model = llama_cpp.llama_model_load_from_file(asked["path"].encode(), load)
    if not model:
        raise SystemExit(b"".join(lines)[-3000:].decode(errors="replace"))
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = asked["context"] * asked["slots"]
    options.n_seq_max = options.n_outputs_max = asked["slots"]
    options.n_outputs_max_per_seq = 1
    options.kv_unified = asked.get("unified", False)
    options.n_batch = max(2048, asked.get("ubatch", 512))
    options.n_ubatch = asked.get("ubatch", 512)
    options.type_k, options.type_v = asked.get("type_k", 1), asked.get("type_v", 1)
    options.swa_full = False
    context = llama_cpp.llama_init_from_model(model, options)
    log = b"".join(lines).decode(errors="replace")
    if not context:
        raise SystemExit(log[-3000:])
    print(json.dumps(figures(log) | breakdown(llama_cpp, context)))
    if asked.get("log"):
        sys.stderr.write(log)


if __name__ == "__main__":
    main()
