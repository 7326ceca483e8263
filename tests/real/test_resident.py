"""What is resident of a real engine, after many prompts, stays within what its plan counted with."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from real.models import byte_level_tokenizer, save_model

from qlangchain import get_llm
from qlangchain.runtimes import pool
from qlangchain.runtimes.llamacpp import LlamaCpp


def sliding(directory: Path) -> Path:
    """Ten layers with a window of 512 tokens: 20 MiB of it for each request, of which llama.cpp keeps copies."""
    save_model(
        directory, "gemma3", byte_level_tokenizer(), dtype="bfloat16", hidden_size=256, intermediate_size=256,
        num_hidden_layers=12, num_key_value_heads=4, head_dim=256, max_position_embeddings=8192, sliding_window=512,
    )  # fmt: skip
    return directory


@pytest.mark.parametrize(("name", "prompts", "context"), [("demo", 26, 2048), ("sliding", 8, 8192)])
def test_an_engine_never_grows_beyond_its_plan(name: str, prompts: int, context: int, tmp_path: Path) -> None:
    """By default llama.cpp keeps 8 GiB of past prompts, and 32 copies of each slot's windows and states."""
    model = "demo" if name == "demo" else sliding(tmp_path / "model")
    llm = get_llm(
        model, hardware="cpu", format="Q8_0", max_tokens=1, raw=True, context_length=context, concurrency=1, threads=2
    )
    plan, text = llm.plan, "begin " * 100
    assert plan is not None and plan.estimate is not None
    channel = llm._channel()
    assert channel.artifact and channel.options
    for number in range(prompts):
        # Windows fill up as one text grows, the store of past prompts with ever different ones.
        text = f"{number} alpha {number} beta " * 60 if name == "demo" else text + f"{number} alpha beta gamma " * 8
        llm.invoke(text)
    engine = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
    assert isinstance(engine, LlamaCpp)
    resident = psutil.Process(engine.supervisor.start(lambda _: None).engine_pid).memory_info().rss
    pool.shared().close()
    assert 0.5 * plan.estimate.memory < resident
    assert resident <= plan.estimate.memory + plan.estimate.margin + plan.estimate.cached
