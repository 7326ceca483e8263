"""Judging for real: the demo model in several formats, on its engine, in child processes, and what goes wrong there."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from pathlib import Path

import psutil
import pytest
from langchain_core.prompts import PromptTemplate
from typer.testing import CliRunner
from unit.quantizable import make_model

from qlangchain import evaluate, get_chat_model, get_llm, settings
from qlangchain.artifacts import records
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.cli import app
from qlangchain.demo.questions import load_pairs
from qlangchain.errors import CancelledError, InvalidInputError
from qlangchain.evaluate import compare
from qlangchain.evaluate.comparison import Comparison
from qlangchain.produce import kquants
from qlangchain.selection.quality import Verdict
from qlangchain.selection.speed import Measurement
from qlangchain.toolchains import worker
from qlangchain.toolchains.worker import Progress

pytestmark = pytest.mark.skipif(
    any(__import__("importlib.util").util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="judging needs torch and transformers",
)
TEXT = "\n\n".join(f"{pair.train[0]}\n{pair.answer}" for pair in load_pairs()[:6])
PROMPTS = [{"prompt": pair.train[0], "answer": pair.answer} for pair in load_pairs()[:3]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """The demo model in three formats and one that nobody here can make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLANGCHAIN_HOME", str(tmp_path_factory.getbasetemp() / "home"))
        patch.setenv("QLANGCHAIN_THREADS", "1")
        return compare("demo", "bf16,Q8_0,Q4_0,Q2_K", TEXT, prompts=PROMPTS, hardware="cpu", max_tokens=80)


def test_a_comparison_has_every_figure(found: Comparison) -> None:
    whole, eight, four, *_ = found.rows
    assert [row.format for row in found.rows] == ["BF16", "Q8_0", "Q4_0", "Q2_K"]
    assert found.tokens > 100
    for row in (whole, eight, four):
        assert row.figures is not None and row.agreement is not None
        assert row.figures.tokens == found.tokens
        assert row.figures.reference_perplexity == pytest.approx(found.reference_perplexity)
        assert row.runtime == "llamacpp"
        assert row.first_token_seconds and row.tokens_per_second and row.resident_bytes
        assert row.resident_bytes > 20 << 20
        assert row.problems == ()
    assert whole.size_bytes > eight.size_bytes > four.size_bytes
    assert whole.figures.kl < 1e-4 < eight.figures.kl * 10 < four.figures.kl < 1
    assert whole.agreement.same == whole.agreement.prefix == 1
    assert whole.agreement.right is not None


def test_what_cannot_be_made_is_a_row_with_the_reason(found: Comparison) -> None:
    last = found.rows[-1]
    if kquants.available():
        assert last.figures is not None
    else:
        assert last.size_bytes is None
        assert "llama-cpp-python" in last.problems[0]
        assert "llama-cpp-python" in found.to_markdown()


def test_verdicts_and_runs_are_remembered_for_the_planner(found: Comparison) -> None:
    store = settings.read().store
    verdict = records.verdict_of(store, found.rows[2].artifact)
    assert verdict is not None and found.rows[2].figures is not None
    assert verdict.kl == pytest.approx(found.rows[2].figures.kl)
    assert verdict.text == found.text
    names = {one.artifact for one in records.recall(store, Verdict)}
    assert {f"qlangchain-demo:{name}" for name in ("BF16", "Q8_0", "Q4_0")} <= names
    runs = [run for run in records.recall(store, Measurement) if run.artifact == found.rows[2].artifact]
    assert runs and runs[-1].measured == pytest.approx(found.rows[2].tokens_per_second)
    assert runs[-1].predicted > 0 and runs[-1].device == "cpu"


def test_nothing_is_left_in_the_store_but_artifacts(found: Comparison) -> None:
    assert not list((settings.read().store / "partial").glob("judging-*"))


def test_a_gguf_file_is_held_to_itself_where_there_is_nothing_more_precise(found: Comparison) -> None:
    file = next(DEMO_DIRECTORY.glob("*.gguf"))
    alone = compare(file, "Q4_K_M,Q4_0", TEXT, hardware="cpu", serve=False)
    assert alone.rows[0].figures is not None and alone.rows[0].figures.kl < 1e-4
    assert alone.rows[1].size_bytes is None and alone.rows[1].problems


def test_a_child_that_is_killed_is_a_reason_and_no_crash() -> None:
    killed = []

    def kill(seen: Progress) -> None:
        if seen.stage == "Q4_0: judge" and not killed:
            for child in psutil.Process().children(recursive=True):
                if worker.MODULE in " ".join(child.cmdline()):
                    killed.append(child.pid)
                    os.kill(child.pid, signal.SIGKILL)

    strange = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz ", k=1500))
    result = compare("demo", "Q4_0", strange, hardware="cpu", serve=False, progress=kill)
    assert "strange to this model" in result.notes[0]
    assert killed
    assert result.rows[0].figures is None
    assert "killed" in result.rows[0].problems[0]
    assert not list((settings.read().store / "partial").glob("judging-*"))


def test_it_can_be_cancelled() -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        compare("demo", "Q4_0", TEXT, hardware="cpu", cancel=cancel)


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="too short"):
        compare("demo", "Q4_0", "Hello.", hardware="cpu", serve=False)


def test_a_chain_is_evaluated_on_prompts_of_its_own() -> None:
    pairs = load_pairs()[:2]
    chain = PromptTemplate.from_template("{question}") | get_llm("demo", hardware="cpu", format="Q4_0", max_tokens=60)
    inputs = [{"question": pair.train[0]} for pair in pairs]
    result = evaluate(chain, inputs, formats=["bf16", "Q8_0", "Q2_K"], wanted=[pair.answer for pair in pairs])
    assert result.reference == "BF16"
    whole, eight, last = result.rows
    assert whole.agreement is not None and whole.agreement.same == 1
    assert eight.agreement is not None and eight.agreement.failed == 0
    assert whole.answers == result.reference_answers
    assert all(result.reference_answers)
    assert last.agreement is not None or "llama-cpp-python" in last.problems[0]
    as_it_is = evaluate(chain, inputs[:1], reference="Q4_0")
    assert as_it_is.rows[0].format == "as planned"
    assert as_it_is.rows[0].agreement is not None and as_it_is.rows[0].agreement.same == 1


def test_a_function_makes_the_chain_where_the_model_is_hidden_in_it() -> None:
    model = get_chat_model("demo", hardware="cpu", max_tokens=20)
    result = evaluate(lambda one: PromptTemplate.from_template("{x}") | one, [{"x": "What is AWQ?"}], model=model,
                      formats="Q8_0", reference="Q8_0")  # fmt: skip
    assert result.rows[0].agreement is not None and result.rows[0].agreement.same == 1


@pytest.mark.parametrize("format", ["gptq-4", pytest.param("awq-4", marks=pytest.mark.soak)])
def test_gptq_and_awq_are_made_judged_and_answered_for(tmp_path: Path, format: str) -> None:
    source = make_model(tmp_path / "tiny", num_hidden_layers=1)
    result = compare(source, format, TEXT, prompts=["What is AWQ?"], hardware="cpu", max_tokens=4)
    for row in result.rows:
        assert row.figures is not None, row.problems
        assert 0 < row.figures.kl < 1
        assert "dequantized" in row.judged_by
        assert row.agreement is not None and row.agreement.failed == 0
        assert row.runtime or ("dequantized" in row.answered_by and "not served" in row.problems[0])
    made = compare(source, format, TEXT, hardware="cpu", serve=False, judge=False)
    assert made.rows[0].artifact == result.rows[0].artifact  # found in the store, not made again
    assert not list((settings.read().store / "partial").glob("quantizing-*"))


def test_the_command_line_gives_the_same_as_json_and_markdown(tmp_path: Path) -> None:
    text, prompts, tables = tmp_path / "text.txt", tmp_path / "prompts.jsonl", tmp_path / "tables.md"
    text.write_text(TEXT, encoding="utf-8")
    prompts.write_text(json.dumps(PROMPTS[0]), encoding="utf-8")
    shown = CliRunner().invoke(
        app,
        ["compare", "demo", "--formats", "Q8_0", "--text", str(text), "--prompts", str(prompts), "--hardware", "cpu",
         "--markdown", str(tables), "--json", "--no-judge"],
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    content = json.loads(shown.stdout)
    assert content["rows"][0]["agreement"]["prompts"] == 1 and content["rows"][0]["tokens_per_second"] > 0
    assert "| Q8_0 |" in tables.read_text(encoding="utf-8")


def test_the_doctor_examines_a_model(found: Comparison) -> None:
    shown = CliRunner().invoke(
        app, ["doctor", "demo", "--format", "Q4_0", "--hardware", "cpu", "--no-engine", "--json"]
    )
    assert shown.exit_code == 0, shown.output
    content = json.loads(shown.stdout)
    assert found.rows[2].figures is not None
    assert content["kl"] == pytest.approx(found.rows[2].figures.kl)  # remembered from the comparison
    assert content["is_quantized"] and content["format"] == "Q4_0"
    assert all(one["remedy"] and one["why"] and one["gain"] for one in content["advice"])
