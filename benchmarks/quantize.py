"""Our GPTQ and AWQ beside gptqmodel's and beside rounding to nearest: divergence, time, memory, each in a process.

    python benchmarks/quantize.py [--gptqmodel PYTHON] [--model DIR] [--calibrate FILE] [--held-out FILE]
    python benchmarks/quantize.py --memory [--gptqmodel PYTHON]

PYTHON is the interpreter of an environment with gptqmodel, which then quantizes the same model on the same samples.
The text defaults to the demo model's corpus: trained phrasings to calibrate on, held-out ones to measure on. With
--memory, models of random weights with 4, 12 and 24 blocks are quantized instead, to see what memory depends on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qlangchain.artifacts.source import DEMO_DIRECTORY

SAMPLES, LENGTH = 64, 256

# The peak since the process began; ru_maxrss would count what the parent held when it started it.
PEAK = """
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
"""

OURS = (
    PEAK
    + """
import json, sys, time
from pathlib import Path
import torch, transformers
from qlangchain.produce import directory
from qlangchain.produce.awq import AwqRecipe
from qlangchain.produce.gptq import GptqRecipe
source, target, method, bits, group, texts, samples, length = sys.argv[1:]
marks = {}
started = time.perf_counter(), time.process_time()
recipe = GptqRecipe(int(bits), int(group)) if method == "gptq" else AwqRecipe(int(bits), int(group))
def progress(stage, done, total):
    if stage == "write":  # the last block is finished
        marks.setdefault("quantized", (time.perf_counter() - started[0], time.process_time() - started[1]))
directory.produce_directory(Path(source), Path(target), recipe, texts=json.loads(Path(texts).read_text()),
                            samples=int(samples), sequence_length=int(length), progress=progress)
print("RESULT", json.dumps({"wall": marks["quantized"][0], "cpu": marks["quantized"][1], "peak": peak()}))
"""
)

THEIRS = (
    PEAK
    + """
import json, os, sys, time
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # 7.6.0 fails on two cores without it
from pathlib import Path
import gptqmodel, torch
from gptqmodel.quantization import config
source, target, method, bits, group, tokens = sys.argv[1:]
# Both with zero points in AWQ, and with gptqmodel's other defaults.
recipe = (config.GPTQConfig(bits=int(bits), group_size=int(group)) if method == "gptq"
          else config.AWQConfig(bits=int(bits), group_size=int(group), sym=False))
started = time.perf_counter(), time.process_time()
model = gptqmodel.GPTQModel.load(source, recipe)
ids = [torch.tensor(sample) for sample in json.loads(Path(tokens).read_text())]
extra = {"backend": gptqmodel.BACKEND.AWQ_TORCH} if method == "awq" else {}
model.quantize([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids], **extra)
wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
model.save(target)
print("RESULT", json.dumps({"wall": wall, "cpu": cpu, "peak": peak()}))
"""
)


def run(python: str, code: str, *arguments: object) -> dict[str, float]:
    """Run code in a process of its own and return what it reports: seconds of wall and CPU time, peak MiB."""
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False,
        # Threads that spin while they wait cost both sides most of their time where cores are shared.
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    found: dict[str, float] = json.loads(lines[-1].removeprefix("RESULT"))
    return found


def demo_texts() -> tuple[list[str], list[str]]:
    """The demo model's corpus as conversations: trained phrasings, and held-out ones."""
    pairs = [
        json.loads(line)
        for path in sorted((DEMO_DIRECTORY.parent / "corpus").glob("*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]

    def chat(question: str, answer: str) -> str:
        return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"

    return (
        [chat(pair["train"][n], pair["answer"]) for n in (0, 5) for pair in pairs],
        [chat(pair["held_out"][n], pair["answer"]) for n in (0, 1) for pair in pairs],
    )


def compare(room: Path, model: Path, texts: list[str], held_out: list[str] | None, theirs: str | None) -> None:
    """Quantize by every method and print one table."""
    from qlangchain.produce.calibration import load_tokenizer, samples_of
    from qlangchain.produce.divergence import measure
    from qlangchain.produce.quantized_files import open_quantized

    (room / "texts.json").write_text(json.dumps(texts))
    tokens = samples_of(load_tokenizer(model), texts, SAMPLES, LENGTH)
    (room / "tokens.json").write_text(json.dumps(tokens.tolist()))
    print("\n| directory | KL, milli-nats | nearest | same first token | seconds | CPU seconds | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    for method, bits in (("gptq", 4), ("gptq", 8), ("awq", 4)):
        for name, python, code, given in (
            ("ours", sys.executable, OURS, ("texts.json", SAMPLES, LENGTH)),
            ("gptqmodel", theirs, THEIRS, ("tokens.json",)),
        ):
            if python is None:
                continue
            target = room / f"{name}-{method}-{bits}"
            shutil.rmtree(target, ignore_errors=True)
            told = run(python, code, model, target, method, bits, 128, room / given[0], *given[1:])
            line = f"| {name} {method}-{bits} |"
            if held_out is not None:
                nats, nearest, first, _ = measure(open_quantized(target), model, texts=held_out, samples=64)
                line += f" {nats * 1000:.2f} | {nearest * 1000:.2f} | {first:.3f} |"
            else:
                line += " | | |"
            print(f"{line} {told['wall']:.1f} | {told['cpu']:.1f} | {told['peak']:.0f} |", flush=True)


def random_model(directory: Path, blocks: int) -> Path:
    """A Llama of hidden size 1280 with random weights: 22.3M of them in each block and 82M outside."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config: Any = LlamaConfig(
        vocab_size=32000, hidden_size=1280, intermediate_size=4096, num_hidden_layers=blocks, num_attention_heads=20,
        num_key_value_heads=20, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(directory)
    torch.set_default_dtype(torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_DIRECTORY / name, directory / name)
    return directory


def memory(room: Path, theirs: str | None) -> None:
    """Print the peaks for models that differ in their blocks only, and the speed beside gptqmodel on the smallest."""
    texts = demo_texts()[0] * 2
    (room / "texts.json").write_text(json.dumps(texts))
    print("\n| blocks | parameters | bf16, MiB | a third + 1 GiB | GPTQ peak MiB | AWQ peak MiB |")
    print("|---|---|---|---|---|---|")
    for blocks in (12, 24):
        source = random_model(room / f"random-{blocks}", blocks)
        size = (source / "model.safetensors").stat().st_size / 2**20
        peaks = []
        for method in ("gptq", "awq"):
            told = run(sys.executable, OURS, source, room / f"{method}-{blocks}", method, 4, 128,
                       room / "texts.json", 32, LENGTH)  # fmt: skip
            peaks.append(f"{told['peak']:.0f}")
        shown = f"| {blocks} | {size * 2**19 / 1e6:.0f}M | {size:.0f} | {size / 3 + 1024:.0f} |"
        print(f"{shown} {' | '.join(peaks)} |", flush=True)
        shutil.rmtree(source)
    if theirs:
        compare(room, random_model(room / "random-4", 4), texts, None, theirs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gptqmodel", metavar="PYTHON")
    parser.add_argument("--model", type=Path, default=DEMO_DIRECTORY)
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--memory", action="store_true")
    asked = parser.parse_args()
    texts, held_out = demo_texts()
    if asked.calibrate:
        texts = asked.calibrate.read_text("utf-8").split("\n \n")
    if asked.held_out:
        held_out = asked.held_out.read_text("utf-8").split("\n \n")
    with tempfile.TemporaryDirectory() as room:
        if asked.memory:
            memory(Path(room), asked.gptqmodel)
        else:
            # gptqmodel writes beside the weights it loads, and the demo's directory holds a GGUF file as well.
            model = Path(room) / "model"
            shutil.copytree(asked.model, model, ignore=shutil.ignore_patterns("*.gguf"))
            compare(Path(room), model, texts, held_out, asked.gptqmodel)


if __name__ == "__main__":
    main()
