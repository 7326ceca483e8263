"""What LangChain and this package cost over the raw engine, in the same run: time to first token, per token, batches.

    python benchmarks/overhead.py [MODEL]

The raw engine is `xllamacpp.Server` in this very process, without HTTP and without LangChain, on the same file with
the same settings. Ratios say more than milliseconds on a shared machine; each figure is the median of several runs,
taken in turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import xllamacpp

from qlangchain import get_chat_model, pipeline

RUNS = 9
TOKENS = 96
QUESTION = "Tell me what you know about quantization."


def raw_server(prepared: pipeline.Prepared) -> xllamacpp.Server:
    """Start the engine in this process as `runtimes/host.py` does in a child."""
    params = xllamacpp.CommonParams()
    params.model.path = str(prepared.artifact.path)
    params.api_keys = ["benchmark"]
    params.n_parallel = prepared.plan.slots
    params.n_ctx = prepared.plan.context_length * prepared.plan.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = prepared.plan.threads
    params.kv_unified = False
    params.fit_params = False
    return xllamacpp.Server(params)


def main() -> None:
    """Measure and print one table."""
    model = sys.argv[1] if len(sys.argv) > 1 else "demo"
    prepared = pipeline.prepare(model, pipeline.requirements(hardware="cpu"))
    server = raw_server(prepared)
    # A temperature and a seed keep a small model from ending after a few tokens.
    chat = get_chat_model(model, hardware="cpu", temperature=1.5, seed=1, max_tokens=TOKENS)
    chat.warm_up()
    request = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 1.5, "seed": 1}

    def raw_first() -> None:
        server.handle_chat_completions({**request, "max_tokens": 1})

    def raw_answer() -> None:
        server.handle_chat_completions({**request, "max_tokens": TOKENS})

    def our_first() -> None:
        chat.invoke(QUESTION, max_tokens=1)

    def our_answer() -> None:
        chat.invoke(QUESTION)

    def raw_batch() -> None:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: raw_answer(), range(8)))

    def our_batch() -> None:
        chat.batch([QUESTION] * 8)

    print(f"{'':28} {'raw ms':>9} {'ours ms':>9} {'ratio':>7}")
    rows: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
        ("first token", raw_first, our_first),
        (f"answer of {TOKENS} tokens", raw_answer, our_answer),
        ("batch of 8 answers", raw_batch, our_batch),
    ]
    for name, raw, ours in rows:
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(RUNS):
            for call, times in zip((raw, ours), taken, strict=True):
                start = time.perf_counter()
                call()
                times.append((time.perf_counter() - start) * 1000)
        a, b = (statistics.median(times) for times in taken)
        print(f"{name:28} {a:9.1f} {b:9.1f} {b / a:7.2f}")


if __name__ == "__main__":
    main()
