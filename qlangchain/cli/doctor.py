"""`qlangchain doctor`: looks at everything that a model needs, and proves it with a real engine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from qlangchain.cli.options import Format, HardwareWord, Json
from qlangchain.cli.output import console, notices, print_json, size
from qlangchain.errors import QlangchainError

_PACKAGES = ("langchain-core", "xllamacpp", "gguf", "numpy", "huggingface-hub", "httpx", "pydantic")
_OPTIONAL = {"llama-cpp-python": "K-quants of one's own making", "torch": "tests", "transformers": "tests"}
_SIGNS = {"ok": "[green]✓[/]", "note": "[yellow]•[/]", "bad": "[red]✗[/]"}


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A model to examine: what it loses, how fast it is, and what would help.")
    ] = None,
    format: Format = None,
    hardware: HardwareWord = "auto",
    text: Annotated[Path | None, typer.Option("--text", help="A text file to judge the model by.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Prompts to compare the answers to.")] = None,
    engine: Annotated[bool, typer.Option(help="Start the engine: ask the demo model, measure yours.")] = True,
    json: Json = False,
) -> None:
    """Check this machine and what is installed, or examine MODEL. Exit code 1 when something needed is missing."""
    if model is not None:
        _examine(model, format, hardware, text, prompts, measure=engine, json=json)
        return
    checks = [
        _python(),
        *_packages(),
        _guard("hardware", _hardware),
        _guard("store", _store),
        _guard("engine", _engine),
    ]
    if engine:
        with notices(show=False):
            checks.append(_guard("demo model", _demo))
    healthy = all(check["state"] != "bad" for check in checks)
    if json:
        print_json({"healthy": healthy, "checks": checks})
    else:
        for check in checks:
            console.print(f"{_SIGNS[check['state']]} [bold]{check['name']}[/]: ", end="")
            console.out(check["said"])
            if check.get("hint"):
                console.out(f"    {check['hint']}")
        console.print("[green]All is well.[/]" if healthy else "[red]Something is missing; see ✗ above.[/]")
    raise typer.Exit(0 if healthy else 1)


def _examine(
    model: str, format: str | None, hardware: str, text: Path | None, prompts: Path | None, *, measure: bool, json: bool
) -> None:
    from qlangchain.cli.compare import work_bar
    from qlangchain.evaluate.diagnosis import diagnose

    with notices(show=not json), work_bar(show=not json) as progress:
        found = diagnose(
            model, text, format=format, prompts=prompts, hardware=hardware, measure=measure, progress=progress
        )
    if json:
        print_json(found.to_dict())
        return
    if found.comparison is not None:
        console.print(found.comparison)
    for place, one in enumerate(found.advice, 1):
        console.print(f"[bold]{place}. {one.symptom}:[/] ", end="")
        console.out(one.remedy)
        console.out(f"    Because: {one.why}.")
        console.out(f"    Gain:    {one.gain}.")
    if not found.advice:
        console.print("[green]Nothing to improve: it is precise, fast and small for what it is.[/]")


def _check(name: str, state: str, said: str, hint: str = "", **more: Any) -> dict[str, Any]:
    return {"name": name, "state": state, "said": said, **({"hint": hint} if hint else {}), **more}


def _guard(name: str, check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return check()
    except QlangchainError as error:
        log = getattr(error, "log", "")
        return _check(name, "bad", error.message, error.hint, **({"log": log} if log else {}))


def _python() -> dict[str, Any]:
    return _check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> list[dict[str, Any]]:
    rows = []
    for name in _PACKAGES:
        found = _version(name)
        rows.append(_check(name, "ok", found) if found else _check(name, "bad", "not installed", f"pip install {name}"))
    for name, purpose in _OPTIONAL.items():
        rows.append(_check(name, "ok" if _version(name) else "note", _version(name) or f"not installed; for {purpose}"))
    return rows


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _hardware() -> dict[str, Any]:
    from qlangchain import hardware

    found = hardware.detect()
    gpus = ", ".join(gpu.name for gpu in found.gpus) or "no GPU"
    said = f"{found.cores} cores, {size(found.memory_available)} free of {size(found.memory_total)}, {gpus}"
    return _check("hardware", "ok", said, details=hardware.to_dict(found))


def _store() -> dict[str, Any]:
    from qlangchain import settings

    root = settings.read().store
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return _check("store", "bad", f"{root} cannot be written", "Set QLANGCHAIN_HOME to a directory that can.")
    return _check("store", "ok" if free > 2**30 else "note", f"{root}, {size(free)} free")


def _engine() -> dict[str, Any]:
    from qlangchain.runtimes import llamacpp

    said = llamacpp.engine_version() + (", with GPU support" if llamacpp.supports_gpu() else ", CPU only")
    return _check("engine", "ok", said)


def _demo() -> dict[str, Any]:
    from langchain_core.messages import HumanMessage

    from qlangchain.cli.speaking import speak
    from qlangchain.models.chat import ChatQuantized

    model = ChatQuantized(model="demo", hardware="hybrid", temperature=0, max_tokens=60)
    spoken = speak(model, [HumanMessage("What is GGUF?")], lambda _: None)
    state = "ok" if spoken.text.strip() else "bad"
    return _check(
        "demo model",
        state,
        f"answers: {spoken.text!r} ({spoken.speed})",
        python=sys.executable,
        package=str(Path(__file__).parents[1]),
    )
