"""Predicted against measured resident memory of a running engine, for every format that can be made here.

    python benchmarks/resident.py [--formats Q8_0,Q4_0] [--only demo|random]

The plan says what the engine will take; then it is started as the plan says, reads a prompt that fills half of its
context and answers, and what is resident of its process is read from the system. Weights that are mapped from their
file are counted, as the plan counts them; so are the pages of weights that the engine holds a second time in the order
of its kernels, which the system drops when it wants the room ("cached"). The margin that a plan leaves free is not
part of any figure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import psutil

from qlangchain import get_llm
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.errors import QlangchainError
from qlangchain.runtimes import pool

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

FORMATS = "F16,BF16,Q8_0,Q6_K,Q5_K_M,Q5_1,Q5_0,Q4_K_M,Q4_1,Q4_0,Q2_K"
CONTEXT = 2048
MIB = 1 << 20


def random_model(directory: Path) -> Path:
    """Write a Llama of 254M random weights in BF16."""
    from real.models import byte_level_tokenizer, save_model  # type: ignore[import-not-found]

    save_model(
        directory, "llama", byte_level_tokenizer(), dtype="bfloat16", hidden_size=1536, intermediate_size=4096,
        num_hidden_layers=10, num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=2048,
    )  # fmt: skip
    return directory


def row(name: str, source: Path, format: str) -> float | None:
    """Print one line of the table and return measured over predicted, None where the format cannot be made."""
    llm = get_llm(source, hardware="cpu", format=format, context_length=CONTEXT, max_tokens=8, raw=True, seed=1)
    try:
        plan = llm.plan
        llm.invoke("one two three four " * (CONTEXT // 16))
    except QlangchainError as error:
        print(f"| {name} | {format} | not run: {error.message[:70]} |")
        return None
    assert plan is not None and plan.estimate is not None
    channel = llm._channel()
    assert channel.artifact and channel.options
    engine = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
    running = engine.supervisor._running  # type: ignore[attr-defined]
    taken = psutil.Process(running.engine_pid).memory_info().rss
    parts = ", ".join(f"{part} {value / MIB:.0f}" for part, value in plan.estimate.parts.items())
    cached = plan.estimate.cached
    predicted = plan.estimate.memory + cached
    print(
        f"| {name} | {format} | {plan.estimate.memory / MIB:.0f} | {cached / MIB:.0f} | {taken / MIB:.0f} "
        f"| {(taken - predicted) / MIB:+.0f} | {taken / predicted:.2f} | {parts} |",
        flush=True,
    )
    pool.shared().close()
    return float(taken / predicted)


def main() -> None:
    """Print one table for both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--only", choices=["demo", "random"])
    wanted = parser.parse_args()
    print("| model | format | predicted MiB | cached MiB | resident MiB | difference | ratio | parts, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in (("demo", lambda _: DEMO_DIRECTORY), ("random 254M", random_model)):
            if wanted.only in (None, name.split()[0]):
                source = make(Path(scratch) / "model")
                ratios += [row(name, source, format) for format in wanted.formats.split(",")]
    known = [ratio for ratio in ratios if ratio is not None]
    print(f"\nresident over predicted: {min(known):.2f} to {max(known):.2f} over {len(known)} engines")


if __name__ == "__main__":
    main()
