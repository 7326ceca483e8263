"""`qlangchain plan`, with what this machine has and with what it has not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qlangchain import detect_hardware, pipeline
from qlangchain.cli import app, output, plan_plot
from qlangchain.errors import InvalidInputError, MissingDependencyError, ModelNotFoundError, OfflineError
from qlangchain.selection.plan import Plan
from qlangchain.types import Gpu, Hardware, Target

GIB = 1 << 30


def run(*arguments: str) -> str:
    """What the command prints; an error goes on to the test."""
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False, terminal_width=200)
    assert result.exit_code == 0, result.output
    return result.stdout


def planned(*arguments: str) -> Plan:
    """The plan that the command prints as JSON."""
    return Plan.from_json(run(*arguments, "--json"))


def test_what_is_shown_for_the_demo_model() -> None:
    said = run("demo", "--hardware", "cpu")
    assert "qlangchain-demo as GGUF Q5_1 with llama.cpp on the CPU" in said
    for part in ("KV cache", "the table says GGUF Q5_1", "Next best:", "tokens per second"):
        assert part in said


def test_the_demo_models_own_figures_keep_the_tables_choice() -> None:
    plan = planned("demo", "--hardware", "cpu")
    assert (plan.method, plan.format) == ("GGUF", "Q5_1")
    assert plan.estimate
    assert "measured by the package's authors" in plan.estimate.quality_source
    assert planned("demo", "--hardware", "cpu", "--fast").format == "Q4_0"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--context", "1024"), {"context_length": 1024}),
        (("--concurrency", "3"), {"slots": 3}),
        (("--format", "q8_0"), {"format": "Q8_0"}),
        (("--use-case", "research"), {"use_case": "research"}),
        (("--runtime", "llamacpp"), {"runtime": "llamacpp"}),
        (("--cores", "3"), {"threads": 3}),
    ],
)
def test_options_reach_the_plan(arguments: tuple[str, ...], wanted: dict[str, Any]) -> None:
    plan = planned("demo", *arguments)
    assert {name: getattr(plan, name) for name in wanted} == wanted


def test_a_machine_that_is_not_here() -> None:
    plan = planned("demo", "--hardware", "gpu", "--vram", "24GiB", "--ram", "64GiB", "--cores", "8")
    assert (plan.hardware, plan.gpu_layers, plan.threads) == (Target.GPU, -1, 8)
    assert plan.estimate
    assert (plan.estimate.memory_free, plan.estimate.gpu_free) == (64 * GIB, 24 * GIB)
    assert any("another machine" in notice for notice in plan.notices)
    assert planned("demo", "--vram", "0").gpu_layers == 0
    assert not planned("demo", "--ram", "2GiB", "--hardware", "cpu").notices


def test_a_hardware_as_a_value() -> None:
    there = Hardware(8 * GIB, 8 * GIB, 4, (Gpu("RX 7800", 12 * GIB, 12 * GIB, vendor="amd"),))
    for plan in (pipeline.plan("demo", hardware=there), pipeline.plan("demo", machine=there)):
        assert plan.hardware is Target.HYBRID
        assert any("another machine" in notice for notice in plan.notices)
    own = pipeline.plan("demo", hardware=detect_hardware())
    assert not any("another machine" in notice for notice in own.notices)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ram", "much"), "not a size"),
        (("--ram", "-4GiB"), "not a size"),
        (("--vram", "1EiB"), "1EiB"),
        (("--cores", "0"), "--cores 0"),
        (("--context", "1"), "context_length=1"),
        (("--concurrency", "0"), "concurrency=0"),
        (("--hardware", "tpu"), "tpu"),
        (("--use-case", "fun"), "fun"),
        (("--format", "Q9_9"), "Q9_9"),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        run("demo", *arguments)


def test_models_that_are_not_there() -> None:
    with pytest.raises(ModelNotFoundError):
        run("./nowhere")
    with pytest.raises(OfflineError):
        run("Qwen/Qwen3-4B")


@pytest.mark.parametrize("beside", [(), ("--hardware", "gpu", "--vram", "24GiB", "--ram", "64GiB", "--all")])
def test_the_table_has_room_in_80_columns(beside: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line within the width, and every word whole."""
    monkeypatch.setattr(output.console, "width", 80)
    table = run("demo", *beside).partition("qlangchain-demo as")[0]
    assert max(map(len, table.splitlines())) <= 80
    for word in (
        "llamacpp",
        "tokens/s",
        "lossless",
        "quality",
        "2,048 x 8",
        *(("GPU", "transformers") if beside else ()),
    ):
        assert word in table, table


def test_all_shows_more() -> None:
    few, every = run("demo", "--hardware", "cpu"), run("demo", "--hardware", "cpu", "--all")
    assert "--all shows them" in few
    assert "--all shows them" not in every
    assert every.count("llamacpp") > few.count("llamacpp")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="plots are an extra")
@pytest.mark.parametrize("kind", plan_plot.KINDS)
def test_the_plot(tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"plan{kind}"
    run("demo", "--plot", str(target))
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[kind]
    assert target.read_bytes().startswith(begins)
    if kind == ".svg":
        assert "tokens per second" in target.read_text(encoding="utf-8") or len(target.read_bytes()) > 5000


@pytest.mark.parametrize("name", ["plan.gif", "plan", "nowhere/plan.png"])
def test_a_plot_that_cannot_be_drawn(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InvalidInputError):
        run("demo", "--plot", str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        plan_plot.check(tmp_path / "plan.png")
    assert "qlangchain[plots]" in caught.value.hint


def test_json_is_json_alone() -> None:
    content = json.loads(run("demo", "--json"))
    assert {"format", "reasons", "rejected", "runner_ups", "estimate"} <= set(content)
