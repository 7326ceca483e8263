"""`ModelQuantizer`, `quantize` and the commands: names, refusals, and what a child process leaves behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner
from unit.tiny_model import Make
from unit.tiny_model import make as make  # noqa: PLC0414 - a fixture

from qlangchain import ModelQuantizer, quantize
from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.cli import app
from qlangchain.errors import (
    CancelledError,
    InvalidInputError,
    MissingDependencyError,
    ModelNotFoundError,
    OfflineError,
    ProductionError,
    QlangchainError,
    QlangchainWarning,
    UnsupportedModelError,
)
from qlangchain.quantizer import foreign
from qlangchain.quantizer.examine import examine
from qlangchain.toolchains.worker import Progress


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def test_gguf_gets_the_model_s_name_and_is_checked(make: Make, tmp_path: Path) -> None:
    quantizer = ModelQuantizer(make(), tmp_path / "out")
    path = quantizer.quantize_gguf("q8_0", divergence=False)
    assert path == tmp_path / "out" / "Tiny-Q8_0.gguf"
    assert names(tmp_path / "out") == ["Tiny-Q8_0.gguf"]
    made = quantizer.made
    assert made is not None and os.fspath(made) == str(path)
    assert made.size_bytes == path.stat().st_size
    assert made.error is not None and 0 < made.error < 0.01
    assert made.bits_per_weight is not None and 8 < made.bits_per_weight < 9.5
    assert json.loads(json.dumps(made.to_dict()))["format"] == "Q8_0"


def test_nothing_is_overwritten_unless_asked(make: Make, tmp_path: Path) -> None:
    source = make()
    first = quantize(source, "gguf", tmp_path, format="Q4_0", divergence=False)
    before = first.path.read_bytes()
    with pytest.raises(InvalidInputError, match="exists already"):
        quantize(source, "gguf", tmp_path, format="Q4_0")
    again = quantize(source, "gguf", tmp_path, format="Q4_0", overwrite=True, divergence=False)
    assert again.path.read_bytes() == before
    taken = tmp_path / "gptq-4bit"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="exists already"):
        ModelQuantizer(source, tmp_path).quantize_gptq()
    assert names(taken) == ["mine.txt"]


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("exl2", {}, "method 'exl2' is not known"),
        (None, {}, "method None"),
        ("gguf", {"bits": 4}, "no setting 'bits'"),
        ("gguf", {"format": "Q9"}, "'Q9' is not known"),
        ("gguf", {"format": "IQ2_XS"}, "needs an importance matrix"),
        ("gguf", {"format": "Q8_0", "imatrix": True}, "changes nothing in Q8_0"),
        ("gptq", {"bits": 3}, "3"),
        ("awq", {"bits": 8}, "8 bits does not exist"),
        ("gptq", {"bits": 4.0}, "4.0 bits"),
        ("gptq", {"samples": 0}, "samples=0 is not a whole number"),
        ("awq", {"samples": "8"}, "samples='8' is not a whole number"),
        ("gguf", {"format": "Q4_0", "sequence_length": 64.5}, "sequence_length=64.5"),
        ("int8", {"scheme": "fp8"}, "'fp8' is not known"),
        ("gptq", {"tool": "autoawq"}, "does not make GPTQ"),
        ("gptq", {"dataset": "nothing-of-this-name"}, "no calibration text"),
        ("gptq", {"dataset": []}, "no list of strings"),
    ],
)
def test_what_cannot_be_asked_for(
    make: Make, tmp_path: Path, method: Any, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        quantize(make(), method, tmp_path / "out", **settings)
    assert caught.value.hint
    assert names(tmp_path / "out") == []


def test_an_output_directory_that_cannot_be_made(make: Make, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for method, settings in (("gguf", {"format": "Q4_0"}), ("gptq", {})):
        with pytest.raises(InvalidInputError, match="taken cannot be made"):
            quantize(make(), method, tmp_path / "taken", **settings)
    assert (tmp_path / "taken").read_text() == "mine"


def test_other_tools_refuse_what_is_quantized_already(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLANGCHAIN_GPTQMODEL_PYTHON", sys.executable)
    source = make(quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(UnsupportedModelError, match="already quantized"):
        quantize(source, "gptq", tmp_path / "out", tool="gptqmodel")


def test_models_that_have_no_full_precision_weights(make: Make, tmp_path: Path) -> None:
    made = quantize(make(), "gguf", tmp_path, format="F16").path
    with pytest.raises(InvalidInputError, match="is a GGUF file"):
        quantize(made, "gptq", tmp_path)
    with pytest.raises(ModelNotFoundError):
        quantize(tmp_path / "none", "gguf", tmp_path, format="Q4_0")
    with pytest.raises(OfflineError):
        quantize("Qwen/Qwen3-0.6B", "gguf", tmp_path, format="Q4_0")


def test_an_unknown_architecture_names_the_library_that_may_know_it(make: Make, tmp_path: Path) -> None:
    source = make(architectures=["OlmoForCausalLM"])
    with pytest.raises(UnsupportedModelError, match="gptqmodel may know it") as caught:
        quantize(source, "gptq", tmp_path / "out")
    assert "qlangchain env create gptqmodel" in caught.value.hint


def test_tools_that_nobody_maintains_are_announced(make: Make, tmp_path: Path) -> None:
    for tool, method in (("autoawq", "awq"), ("auto-gptq", "gptq")):
        with (
            pytest.warns(QlangchainWarning, match="no longer maintained"),
            pytest.raises(MissingDependencyError, match="no environment") as caught,
        ):
            quantize(make(), method, tmp_path / "out", tool=tool)
        assert f"qlangchain env create {tool}" in caught.value.hint
    with pytest.raises(MissingDependencyError, match="llm-compressor"):
        quantize(make(), "int8", tmp_path / "out", scheme="w8a8")
    assert set(foreign.TOOLS) == {"gptqmodel", "autoawq", "auto-gptq", "llm-compressor"}


def test_what_others_tools_leave_behind_is_not_left_where_the_user_works(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("QLANGCHAIN_GPTQMODEL_PYTHON", sys.executable)
    monkeypatch.setitem(foreign.TOOLS, "gptqmodel", (("gptq",), "jobs:litter"))
    monkeypatch.setattr(foreign, "_cut", lambda *_: [[1, 2, 3]])
    make()
    with pytest.raises(QlangchainError, match=r"config\.json"):
        quantize(os.path.relpath(make()), "gptq", "out", tool="gptqmodel")
    assert names(here) == ["out"] and names(here / "out") == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_killed_child_leaves_nothing_that_is_found(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def kill(seen: Progress) -> None:
        for child in psutil.Process().children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(ProductionError, match="was killed"):
        quantize(make(), "gguf", out, format="Q4_0", progress=kill)
    assert names(out) in ([], ["Tiny-Q4_0.gguf"])  # whole where the kill came after the last byte, or not at all
    for whole in out.glob("*.gguf"):
        check_servable(read_gguf_header(whole))
        whole.unlink()
    made = quantize(make(), "gguf", out, format="Q4_0", divergence=False)
    assert read_gguf_header(made.path).metadata["general.name"] == "Tiny"


def test_cancelling(make: Make, tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        quantize(make(), "gguf", tmp_path / "out", format="Q4_0", cancel=cancel)
    assert names(tmp_path / "out") == []


def test_the_command(make: Make, tmp_path: Path) -> None:
    source, out = str(make()), str(tmp_path / "out")
    run = CliRunner().invoke(app, ["quantize", source, "--format", "BF16", "--out", out, "--json"])
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    assert said["made"]["path"] == str(tmp_path / "out" / "Tiny-BF16.gguf")
    assert said["estimate"]["seconds"] > 0
    shown = CliRunner().invoke(app, ["quantize", source, "--format", "F16", "--out", out, "--yes"])
    assert shown.exit_code == 0, shown.output
    assert "It will take about" in shown.stdout and "Tiny-F16.gguf" in shown.stdout.replace("\n", "")
    wrong = CliRunner().invoke(app, ["quantize", source, "--method", "exl2"])
    assert isinstance(wrong.exception, InvalidInputError)


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "awq", "--desc-act"],
        ["--method", "gguf", "--bits", "4"],
        ["--method", "gguf", "--tool", "gptqmodel"],
        ["--method", "int8", "--bits", "4"],
        ["--method", "gptq", "--format", "Q4_0"],
        ["--imatrix", "default", "--method", "gptq"],
    ],
)
def test_the_command_leaves_no_option_aside_in_silence(make: Make, tmp_path: Path, options: list[str]) -> None:
    run = CliRunner().invoke(app, ["quantize", str(make()), "--out", str(tmp_path / "out"), *options])
    assert isinstance(run.exception, InvalidInputError) and "has no meaning" in run.exception.message
    assert run.exception.hint and names(tmp_path / "out") == []


def test_verify_says_what_a_file_holds(make: Make, tmp_path: Path) -> None:
    source = make()
    made = quantize(source, "gguf", tmp_path / "out", format="Q4_0", divergence=False)
    found = examine(made.path)
    assert (found.quantized, found.method, found.format, found.is_sound) == (True, "GGUF", "Q4_0", True)
    assert found.types["Q4_0"] >= 7 and 4 < found.bits_per_weight < 7
    assert found.kernels["llamacpp"] == "" and "GGUF" in found.kernels["vllm"]
    assert found.memory is not None and found.batch is not None
    compared = examine(made.path, source)
    assert compared.compared and compared.figures["error"] < 0.15
    other = make(change=lambda weights: weights.update({n: v[::-1].copy() for n, v in weights.items()}))
    assert not examine(made.path, other).is_sound
    plain = examine(source)
    assert (plain.quantized, plain.format) == (False, "unknown")
    run = CliRunner().invoke(app, ["verify", str(made.path), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["quantized"] is True
    with pytest.raises(ModelNotFoundError):
        examine(tmp_path / "none")
