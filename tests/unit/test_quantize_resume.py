"""An interrupted quantization goes on where it was, and never leaves anything that could be taken for finished."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from unit.quantizable import QUICK, make_model, tensors_of  # noqa: E402
from unit.quantizable import one_thread as one_thread  # noqa: E402, PLC0414 - a fixture

from qlangchain.errors import CancelledError, DiskFullError, ProductionError  # noqa: E402
from qlangchain.produce import directory, layout  # noqa: E402
from qlangchain.produce.awq import produce_awq  # noqa: E402
from qlangchain.produce.gptq import produce_gptq  # noqa: E402

METHODS = {"gptq": produce_gptq, "awq": produce_awq}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("source") / "model", "Qwen2ForCausalLM")


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What comes of each method where nothing interrupts."""
    room = tmp_path_factory.mktemp("whole")
    return {name: tensors_of(make(source, room / name, **QUICK)) for name, make in METHODS.items()}


def visible(room: Path) -> list[str]:
    return sorted(path.name for path in room.iterdir() if not path.name.startswith("."))


def steps_into(seen: list[int]) -> Callable[[str, int, int], None]:
    return lambda stage, done, _: seen.append(done) if stage == "quantize" else None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", ["quantize 4", "quantize 9", "verify 2"])
def test_cancelled_and_called_again(
    source: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path, method: str, place: str
) -> None:
    cancel = threading.Event()
    stage_wanted, _, at = place.partition(" ")

    def stop(stage: str, done: int, _: int) -> None:
        if stage == stage_wanted and done >= int(at):
            cancel.set()

    with pytest.raises(CancelledError):
        METHODS[method](source, tmp_path / "out", **QUICK, progress=stop, cancel=cancel)
    assert visible(tmp_path) == []
    seen: list[tuple[str, int, int]] = []
    METHODS[method](source, tmp_path / "out", **QUICK, progress=lambda *told: seen.append(told))
    steps = [done for stage, done, _ in seen if stage == "quantize"]
    assert steps == list(range(13 - len(steps), 13))
    # A block has four steps; when the fourth is told, GPTQ has yet to run the block once more, and AWQ has not.
    left = {"quantize 4": 8 if method == "awq" else 12, "quantize 9": 4}
    assert len(steps) == left.get(place, 0)
    assert {stage for stage, _, _ in seen} >= {"write", "verify"}
    assert tensors_of(tmp_path / "out") == whole[method]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_settings_begin_anew(source: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    cancel = threading.Event()
    with pytest.raises(CancelledError):
        produce_gptq(
            source, tmp_path / "out", **(QUICK | {"group_size": 16}), cancel=cancel,
            progress=lambda stage, done, _: cancel.set() if done == 9 else None,
        )  # fmt: skip
    seen: list[int] = []
    produce_gptq(source, tmp_path / "out", **QUICK, progress=steps_into(seen))
    assert seen == list(range(1, 13))
    assert tensors_of(tmp_path / "out") == whole["gptq"]


def test_a_changed_source_begins_anew(tmp_path: Path) -> None:
    source = make_model(tmp_path / "model")
    cancel = threading.Event()

    def stop(stage: str, done: int, _: int) -> None:
        if stage == "quantize" and done == 9:
            cancel.set()

    with pytest.raises(CancelledError):
        produce_gptq(source, tmp_path / "out", **QUICK, progress=stop, cancel=cancel)
    os.utime(source / "model.safetensors", ns=(1, 1))
    seen: list[int] = []
    produce_gptq(source, tmp_path / "out", **QUICK, progress=steps_into(seen))
    assert seen[0] == 1


CHILD = """
import json, os, signal, sys
from pathlib import Path
from qlangchain.produce.awq import produce_awq
from qlangchain.produce.gptq import produce_gptq
source, target, method, stage_wanted, at, quick = sys.argv[1:]
def stop(stage, done, total):
    if stage == stage_wanted and done >= int(at):
        os.kill(os.getpid(), signal.SIGKILL)
make = {"gptq": produce_gptq, "awq": produce_awq}[method]
make(Path(source), Path(target), **json.loads(quick), progress=stop)
"""


def run_child(source: Path, target: Path, method: str, stage: str, at: int) -> int:
    path = os.pathsep.join(part for part in sys.path if part)
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(target), method, stage, str(at), json.dumps(QUICK)],
        capture_output=True, check=False, env=os.environ | {"PYTHONPATH": path},
    ).returncode  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("method", "stage", "at"), [("gptq", "quantize", 6), ("awq", "write", 1)])
def test_a_kill_leaves_nothing_that_looks_finished(
    source: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path, method: str, stage: str, at: int
) -> None:
    assert run_child(source, tmp_path / "out", method, stage, at) == -signal.SIGKILL
    assert visible(tmp_path) == []
    METHODS[method](source, tmp_path / "out", **QUICK)
    assert tensors_of(tmp_path / "out") == whole[method]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.soak
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("stage", "at"), [*(("quantize", n) for n in range(1, 13)), ("compare", 3), ("verify", 2)])
def test_a_kill_at_any_step(
    source: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path, method: str, stage: str, at: int
) -> None:
    test_a_kill_leaves_nothing_that_looks_finished(source, whole, tmp_path, method, stage, at)


@pytest.mark.parametrize("place", ["activations", "block", "directory", "publish"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails(
    source: Path,
    whole: dict[str, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    number: int,
) -> None:
    calls = 0

    def fail(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 3 and place in ("activations", "block"):
            return real(*_, **__)
        raise OSError(number, os.strerror(number))

    owner, name = {
        "activations": (directory.Activations, "write"), "block": (layout, "write_tensors"),
        "directory": (layout, "write_shards"), "publish": (directory.os, "fsync"),
    }[place]  # fmt: skip
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(DiskFullError if number == errno.ENOSPC else ProductionError):
        produce_gptq(source, tmp_path / "out", **QUICK)
    monkeypatch.undo()
    assert visible(tmp_path) == []
    assert tensors_of(produce_gptq(source, tmp_path / "out", **QUICK)) == whole["gptq"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory")])
def test_memory_that_runs_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "addmm", fail)
    monkeypatch.setattr("qlangchain.produce.gptq.solve", fail)
    with pytest.raises(ProductionError, match="memory ran out"):
        produce_gptq(source, tmp_path / "out", **QUICK)
    assert visible(tmp_path) == []


def test_what_fails_its_check_is_not_published(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = directory.write_block

    def wrong(room: Path, decoder: Any, index: int, layers: Any, others: Any, how: Any) -> None:
        def spoiled(layer: Any) -> Any:
            tensors = how(layer)
            return tensors | {"scales": tensors["scales"] * 2}

        encode(room, decoder, index, layers, others, spoiled)

    monkeypatch.setattr(directory, "write_block", wrong)
    with pytest.raises(ProductionError, match="does not pass its check"):
        produce_gptq(source, tmp_path / "out", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_shards(source: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    from qlangchain.produce.gptq import GptqRecipe
    from qlangchain.produce.verify import verify_directory

    quick = {key: value for key, value in QUICK.items() if key != "group_size"}
    recipe = GptqRecipe(group_size=QUICK["group_size"])
    target, _ = directory.produce_directory(source, tmp_path / "out", recipe, **quick, shard_bytes=300_000)
    assert len(list(target.glob("model-*-of-*.safetensors"))) > 2
    assert tensors_of(target) == whole["gptq"]
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(target).keys()
    assert verify_directory(target, source).is_sound
