"""Predicted against measured decode speed, on the real engine, for every format that can be made here.

    python benchmarks/speed.py [--threads N] [--formats Q8_0,Q4_0] [--only demo|random]

Two models: the demo model, and one of random weights with 254M parameters, which no cache holds. Each prediction is
made from the file's bytes and this machine's bandwidth before the engine starts; then the best of several runs is
taken, as llama.cpp itself reports it (other programs can only slow a run down), and a second prediction is corrected
by the runs of the *other* formats. Only the weights are random: speed does not depend on their values. Run it on an
idle machine: threads that wait for each other on a busy one say nothing of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp

from qlangchain import hardware, settings
from qlangchain.artifacts.headers import read_gguf_header
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.errors import QlangchainError
from qlangchain.produce.gguf import produce_gguf
from qlangchain.selection import speed
from qlangchain.types import Hardware

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

FORMATS = "F16,BF16,Q8_0,Q6_K,Q5_K_M,Q5_1,Q5_0,Q4_K_M,Q4_1,Q4_0,IQ4_XS,Q3_K_M,Q2_K"
PROMPT, TOKENS, RUNS, CONTEXT = 16, 48, 5, 512


def random_model(directory: Path) -> Path:
    """Write a Llama of 254M random weights in BF16."""
    from real.models import byte_level_tokenizer, save_model  # type: ignore[import-not-found]

    save_model(
        directory, "llama", byte_level_tokenizer(), dtype="bfloat16", hidden_size=1536, intermediate_size=4096,
        num_hidden_layers=10, num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=2048,
    )  # fmt: skip
    return directory


def load_of(path: Path, machine: Hardware, threads: int) -> speed.Load:
    """What the engine will read of this file for each token, on the CPU, in the middle of the run."""
    header = read_gguf_header(path)
    sizes = {tensor.name: tensor.nbytes for tensor in header.tensors}
    tied = "output.weight" not in sizes
    arch = header.metadata["general.architecture"]
    layers, heads = (int(header.metadata[f"{arch}.{name}"]) for name in ("block_count", "attention.head_count_kv"))
    width = int(header.metadata[f"{arch}.embedding_length"]) // int(header.metadata[f"{arch}.attention.head_count"])
    read = speed.bytes_per_token(sum(sizes.values()), embedding_bytes=sizes["token_embd.weight"], tied=tied)
    kv = layers * heads * width * 2 * 2 * (PROMPT + TOKENS // 2)
    return speed.on_cpu(machine, read, kv, layers, threads)


def measured(path: Path, threads: int) -> float:
    """The best of the tokens per second that llama.cpp reports, served as the runtime serves it."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), CONTEXT, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.fit_params, params.api_keys = False, ["benchmark"]
    server = xllamacpp.Server(params)  # it ends with this function

    def post(body: dict[str, Any]) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{server.listening_address}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer benchmark"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
            return json.load(answer)

    body = {"n_predict": TOKENS, "ignore_eos": True, "temperature": 1.0, "cache_prompt": False}
    runs = [post({**body, "prompt": list(range(20 + n, 20 + n + PROMPT))})["timings"] for n in range(RUNS + 1)]
    return max(float(run["predicted_per_second"]) for run in runs[1:])


def compare(name: str, source: Path, formats: list[str], threads: int, machine: Hardware) -> list[float]:
    """Print one model's table and return measured over predicted for each format."""
    here, today, found = speed.machine_of(machine), time.strftime("%Y-%m-%d"), []
    with tempfile.TemporaryDirectory() as scratch:
        for format in formats:
            path = Path(scratch) / f"{format}.gguf"
            try:
                produce_gguf(source, path, format)
            except QlangchainError as error:
                print(f"| {name} | {format} | not made: {error.message[:60]} |")
                continue
            load = load_of(path, machine, threads)
            predicted = speed.decode([load], format=format, runtime="llamacpp")
            tokens = measured(path, threads)
            path.unlink()
            run = speed.Measurement(here, "llamacpp", "cpu", format, name, predicted.expected, tokens, today)
            found.append((load, predicted, run))
            print(f"{name} {format}: {tokens:.1f} t/s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    for load, predicted, run in found:
        others = [other for _, _, other in found if other.format != run.format]
        again = speed.correct(predicted, others, machine=here, runtime="llamacpp", device="cpu", format=run.format)
        print(
            f"| {name} | {run.format} | {load.weight_bytes / 1e6:.1f} | {predicted.expected:.1f} "
            f"({predicted.low:.1f} to {predicted.high:.1f}) | {run.measured:.1f} | {run.measured / run.predicted:.2f} "
            f"| {again.expected:.1f} | {run.measured / again.expected:.2f} |"
        )
    return [run.measured / run.predicted for _, _, run in found]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--only", choices=["demo", "random"])
    wanted = parser.parse_args()
    machine = hardware.with_bandwidth(hardware.detect(), settings.read().store)
    threads = min(wanted.threads or machine.cores, machine.cores)
    if machine.bandwidth_bytes is None:
        print(machine.sources["bandwidth_bytes"])
    else:
        figure, source = machine.bandwidth_bytes / 1e9, machine.sources["bandwidth_bytes"]
        print(f"{machine.cpu}, {threads} thread(s), {figure:.1f} GB/s ({source}), load {os.getloadavg()[0]:.1f}\n")
    print("| model | format | MB per token | predicted t/s | measured t/s | ratio | corrected by the others | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in (("demo", lambda _: DEMO_DIRECTORY), ("random 254M", random_model)):
            if wanted.only in (None, name.split()[0]):
                ratios += compare(name, make(Path(scratch)), wanted.formats.split(","), threads, machine)
    within = sum(1 / 1.5 <= ratio <= 1.5 for ratio in ratios)
    print(f"\nmeasured over predicted: median {statistics.median(ratios):.2f}, {within} of {len(ratios)} within 1.5")


if __name__ == "__main__":
    main()
