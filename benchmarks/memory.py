"""Memory, predicted against llama.cpp's own figures, on models of every kind that are all header.

    python benchmarks/memory.py                  # the table; needs llama-cpp-python, takes about a minute
    python benchmarks/memory.py --write          # and keep llama.cpp's figures for the tests

Each line is one engine: architecture, type of file, context, requests at once and type of the KV cache. "off" is
predicted minus llama.cpp's own, for weights, KV cache, graph and output together; the target is 64 MiB or 1 %,
whichever is larger.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from virtual_gguf import NUMBERS, write  # noqa: E402

from qlangchain.selection.architecture import Architecture, from_config  # noqa: E402
from qlangchain.selection.memory import Load, need  # noqa: E402
from qlangchain.selection.tensors import tensors  # noqa: E402
from qlangchain.selection.weights import file_types, predicted  # noqa: E402

MIB = 1 << 20
DATA = TESTS / "data"
FORMATS = ("Q4_K_M", "Q8_0", "Q4_0", "Q6_K", "IQ3_M", "Q2_K", "Q5_1", "Q3_K_L")
LOADS = (
    {"context": 2048, "slots": 1},
    {"context": 8192, "slots": 4, "kv_key": "Q8_0", "kv_value": "Q8_0"},
    {"context": 65536, "slots": 1, "kv_key": "F16", "kv_value": "Q4_0"},
    {"context": 4096, "slots": 2, "unified": True, "ubatch": 2048},
)


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep llama.cpp's figures in tests/data")
    arguments = parser.parse_args()
    models = json.loads((DATA / "models.json").read_text(encoding="utf-8"))
    rows, missed = [], 0
    print(f"{'model':20} {'type':7} {'context':>9} {'KV':>9} {'predicted':>11} {'llama.cpp':>11} {'off':>9}")
    for name, format, load in combinations(models):
        model = from_config(models[name])
        engine = ask(model, format, load)
        if engine is None:
            print(f"{name:20} {format:7} llama.cpp ends its process on this one")
            continue
        predicted_bytes = need(model, predicted(model, format), load).engine
        off = predicted_bytes - engine["total"]
        within = abs(off) <= max(64 * MIB, engine["total"] // 100)
        missed += not within
        print(
            f"{name:20} {format:7} {f'{load.context}x{load.slots}':>9} {f'{load.kv_key}/{load.kv_value}':>9} "
            f"{predicted_bytes / MIB:11,.1f} {engine['total'] / MIB:11,.1f} {off / MIB:+9.1f}{'' if within else ' !'}"
        )
        rows.append({"model": name, "format": format, "load": settings(load), **engine})
    print(f"{len(rows)} combinations, {missed} outside of 64 MiB or 1 %")
    if arguments.write:
        text = ",\n".join(json.dumps(row) for row in rows)
        (DATA / "llama_memory.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


def combinations(models: dict[str, Any]) -> Iterator[tuple[str, str, Load]]:
    """Two loads for each model, formats in turn."""
    for index, name in enumerate(models):
        for place, turn in enumerate((index % 2, 2 + index % 2)):
            yield name, FORMATS[(2 * index + place) % len(FORMATS)], Load(**LOADS[turn], mmap=False)


def settings(load: Load) -> dict[str, Any]:
    """A load as JSON."""
    names = ("context", "slots", "unified", "kv_key", "kv_value", "ubatch")
    return {name: getattr(load, name) for name in names}


def ask(model: Architecture, format: str, load: Load) -> dict[str, int] | None:
    """llama.cpp's own figures in bytes, None where it ends its process.

    Raises ModuleNotFoundError where llama-cpp-python is not installed.
    """
    import llama_cpp  # noqa: F401

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "virtual.gguf"
        write(path, model, file_types(model, format, tensors(model)))
        asked = {
            "path": str(path), "context": load.context, "slots": load.slots, "unified": load.unified,
            "ubatch": load.ubatch, "type_k": NUMBERS[load.kv_key], "type_v": NUMBERS[load.kv_value],
        }  # fmt: skip
        shown = subprocess.run(
            [sys.executable, str(TESTS / "llama_oracle.py")],
            input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    if shown.returncode:
        return None
    found = json.loads(shown.stdout)
    output = int(found["output"] * MIB)
    total = found["weights"] + found["context"] + found["graph"] + output
    return {"weights": found["weights"], "kv": found["context"], "graph": found["graph"], "total": total}


if __name__ == "__main__":
    main()
