"""Every example runs as it stands on the demo model, says what it shows, and is short."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# What each must print, whatever the weights are.
SHOWS = {
    "async_calls": ["The loop was free"],
    "batch": ["What is GPTQ?", "What is vLLM?", "8 answers in"],
    "cache": ["decoded, ", "from the cache, "],
    "choose": ["GGUF Q5_1 with llama.cpp", "AWQ INT4 with vllm/awq", "GGUF Q4_K_M", "Here: Q4_0, 2048 tokens"],
    "embeddings": ["3 vectors of 256 numbers", "A kettle boils water."],
    "fallback": ["answered by qlangchain-demo"],
    "pipe_both_ways": ["The model says: "],
    "stream": [" tokens from Q5_1"],
    "structured_output": ["method=", "needs_gpu=", " bits"],
    "tools": ["The model calls multiply {'a': 27, 'b': 14}", "378"],
}
OTHERS = {"migrate", "testing"}  # longer, with tests of their own


def test_every_example_is_known_and_short() -> None:
    there = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(there) - OTHERS == set(SHOWS)
    assert {name for name in SHOWS if there[name] > 25} == set()


@pytest.mark.parametrize("name", sorted(SHOWS))
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    shown = capsys.readouterr().out
    for words in SHOWS[name]:
        assert words in shown
    assert all(line.strip() != "None" for line in shown.splitlines())


def test_the_cache_example_gives_one_answer_twice(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "cache.py"))
    decoded, cached = capsys.readouterr().out.splitlines()
    assert decoded.partition(": ")[2] == cached.partition(": ")[2] != ""
