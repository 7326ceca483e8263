"""The embedded model is what its card says: its shape, its files, and how well it answers, measured anew."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from qlangchain import get_chat_model, get_llm, pipeline, plan
from qlangchain.artifacts.headers import read_gguf_header, read_safetensors_header
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.demo.evaluate import evaluate
from qlangchain.demo.exercises import measured_sets
from qlangchain.demo.questions import load_pairs
from qlangchain.errors import MissingDependencyError
from qlangchain.produce import kquants
from qlangchain.types import Origin

CARD = (DEMO_DIRECTORY.parent / "card.md").read_text(encoding="utf-8")
CONFIG = json.loads((DEMO_DIRECTORY / "config.json").read_text())


def test_its_shape_suits_every_format() -> None:
    for name in ("hidden_size", "intermediate_size", "vocab_size"):
        assert CONFIG[name] % 256 == 0
    assert CONFIG["head_dim"] == 64
    assert CONFIG["max_position_embeddings"] == 2048
    header = read_safetensors_header(DEMO_DIRECTORY / "model.safetensors")
    parameters = 0
    for tensor in header.tensors.values():
        assert tensor.dtype == "BF16"
        parameters += tensor.nbytes // 2
    assert parameters <= 8_000_000
    assert header.file_size <= 16_000_000
    assert f"{parameters:,} parameters" in CARD


def test_the_corpus_is_large_enough_and_keeps_held_out_phrasings_apart() -> None:
    pairs = load_pairs()
    assert sum(pair.lang == "en" for pair in pairs) >= 200
    assert sum(pair.lang == "zh" for pair in pairs) >= 60
    assert len({pair.id for pair in pairs}) == len({pair.answer for pair in pairs}) == len(pairs)

    def plain(text: str) -> str:
        return re.sub(r"\W+", " ", text.casefold()).strip()

    trained = {plain(text) for pair in pairs for text in pair.train}
    held_out = [plain(text) for pair in pairs for text in pair.held_out]
    assert all(len(pair.train) >= 5 and len(pair.held_out) >= 2 for pair in pairs)
    assert not trained & set(held_out)
    assert len(set(held_out)) == len(held_out)


def test_it_answers_as_well_as_its_card_says() -> None:
    sets = {name: examples for name, examples in measured_sets(load_pairs()).items() if "questions" in name}
    report = evaluate(DEMO_DIRECTORY, sets, generated=0)
    for kind, target in (("trained", 0.98), ("held-out", 0.90)):
        rows = [row for name, row in report.items() if name.startswith(kind)]
        asked = sum(row["n"] for row in rows)
        assert sum(row["n"] * row["exact"] for row in rows) / asked >= target
    for name, row in report.items():
        written = re.search(rf"^\| {re.escape(name)} \| {row['n']:,} \| ([\d.]+)% \|", CARD, re.MULTILINE)
        assert written, f"the card has no row of {row['n']:,} {name}"
        # In bfloat16, processors of another kind round differently: single answers change.
        assert row["exact"] == pytest.approx(float(written[1]) / 100, abs=0.01)


def test_the_engine_gives_the_same_answers() -> None:
    pairs = load_pairs()[::6]
    llm = get_llm("demo", hardware="cpu", format="F16", temperature=0, max_tokens=160)
    answers = llm.batch([pair.train[0] for pair in pairs])
    right = sum(answer == pair.answer for answer, pair in zip(answers, pairs, strict=True))
    assert right / len(pairs) >= 0.95


def test_tools_and_contexts_do_something_sensible() -> None:
    chat = get_chat_model("demo", hardware="cpu", format="F16", temperature=0, max_tokens=100)

    def magic_function(input: int) -> int:
        """Apply a magic function to an input."""
        return input + 2

    answer = chat.bind_tools([magic_function]).invoke("What is the value of magic_function(3)? Use the tool.")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("magic_function", {"input": 3})]


def test_hybrid_serves_the_file_that_lies_there_and_cpu_makes_one() -> None:
    assert plan("demo", hardware="hybrid").origin is Origin.FOUND
    assert plan("demo", hardware="hybrid").format == "Q4_K_M"
    assert plan("demo", hardware="cpu").origin is Origin.PRODUCED
    assert plan("demo", hardware="cpu").format == "Q5_1"
    assert plan("demo", hardware="cpu", precision_required=False).format == "Q4_0"


@pytest.mark.filterwarnings("default::qlangchain.errors.QlangchainWarning")
def test_the_shipped_k_quant_was_made_from_these_weights(tmp_path: Path) -> None:
    (shipped,) = DEMO_DIRECTORY.glob("*.gguf")
    header = read_gguf_header(shipped)
    types = {tensor.type for tensor in header.tensors}
    assert {"Q4_K", "Q6_K"} <= types
    assert types <= {"Q4_K", "Q6_K", "F32"}
    if not kquants.available():
        with pytest.raises(MissingDependencyError, match="llama-cpp-python") as caught:
            kquants.produce_k_gguf(DEMO_DIRECTORY, tmp_path / "again.gguf", "Q4_K_M")
        assert "pip install 'qlangchain[llama-cpp-python]'" in caught.value.hint
        # Without the quantizer, its answers stand for the bytes.
        full = get_llm("demo", hardware="cpu", format="F16", temperature=0, max_tokens=120)
        small = get_llm("demo", hardware="hybrid", temperature=0, max_tokens=120)
        questions = [pair.train[0] for pair in load_pairs()[::20]]
        same = sum(a == b for a, b in zip(full.batch(questions), small.batch(questions), strict=True))
        assert same / len(questions) > 0.5
        return
    again = kquants.produce_k_gguf(DEMO_DIRECTORY, tmp_path / "again.gguf", "Q4_K_M", name="qlangchain-demo")
    ours, theirs = again.read_bytes(), shipped.read_bytes()
    assert len(ours) == len(theirs)
    # Another processor's rounding may choose another scale here and there.
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours) > 0.99


def test_the_template_takes_every_role() -> None:
    chat = get_chat_model("demo", hardware="cpu", temperature=0, max_tokens=8)
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

    call = {"name": "add", "args": {"a": 1}, "id": "1", "type": "tool_call"}
    turns = [
        SystemMessage("Be brief."),
        HumanMessage("Hi"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("2", tool_call_id="1"),
    ]
    counts = [chat.get_num_tokens_from_messages(turns[: length + 1]) for length in range(len(turns))]
    assert counts == sorted(set(counts))
    assert pipeline.prepare("demo", pipeline.requirements(hardware="cpu")).artifact.model_name == "qlangchain-demo"
