"""`qlangchain pull`: bring a model to this machine, verified, and pin what an application uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from qlangchain.artifacts import lockfile
from qlangchain.cli import options
from qlangchain.cli.output import console, notices, print_json, size, watching_bars
from qlangchain.errors import InvalidInputError

if TYPE_CHECKING:
    from qlangchain.pipeline.pulling import Pull
    from qlangchain.types import Artifact


def pull(
    model: Annotated[
        str, typer.Argument(help="A hub id (org/name, org/name:Q4_K_M, org/name@REVISION), an alias or a path.")
    ] = "",
    format: Annotated[str | None, typer.Option(help="Such as Q4_K_M; without it, what suits this machine.")] = None,
    method: Annotated[str | None, typer.Option(help="GGUF, GPTQ, AWQ, compressed-tensors, FP8.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    hardware: options.HardwareWord = "auto",
    fast: options.Fast = False,
    produce: Annotated[bool, typer.Option(help="Whether it may be made here where nobody has published it.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched and why.")] = False,
    lock: Annotated[bool, typer.Option("--lock", help="Pin what was pulled in the lock file.")] = False,
    locked: Annotated[
        bool, typer.Option("--locked", help="Take what the lock file pins; all of it without MODEL.")
    ] = False,
    lock_file: Annotated[Path, typer.Option(help="The lock file.")] = Path(lockfile.NAME),
    timeout: Annotated[float | None, typer.Option(help="Seconds that the whole may take.", min=1)] = None,
    json: options.Json = False,
) -> None:
    """Fetch a model, every byte verified, or make it; what is here already is not fetched again."""
    from qlangchain import pipeline
    from qlangchain.pipeline import pulling

    if not model and not locked:
        raise InvalidInputError("There is no model to pull.", hint="Pass one, or --locked for all of the lock file.")
    wanted: dict[str, Any] = {
        "format": format, "method": method, "revision": revision, "hardware": hardware,
        "precision_required": not fast, "allow_produce": produce,
    }  # fmt: skip
    with notices(show=not json) as said:
        if dry_run:
            found = pulling.look(model, **wanted)
            if json:
                print_json({**pulling.as_mapping(found), "notices": said})
            else:
                _show(found)
            return
        models = [model] if model else sorted({one.model for one in lockfile.read(lock_file)})
        pulled = []
        for one in models:
            with watching_bars(show=not json, deadline=timeout) as watching:
                if locked:
                    artifact = pulling.pull_locked(one, lock_file, format=format, watching=watching)
                else:
                    artifact = pipeline.pull(one, **wanted, lock=lock_file if lock else None, watching=watching)
            pulled.append(_described(one, artifact))
            if not json:
                console.print(f"[green]{escape(one)}[/]: {artifact.format}, {size(artifact.size_bytes)}")
                console.print(escape(str(artifact.path)), soft_wrap=True)
        if json:
            print_json({"artifacts": pulled, "notices": said})


def _described(model: str, artifact: Artifact) -> dict[str, Any]:
    return {
        "model": model,
        "format": artifact.format,
        "method": str(artifact.method),
        "origin": str(artifact.origin),
        "path": str(artifact.path),
        "sha256": artifact.digest,
        "bytes": artifact.size_bytes,
    }


def _show(found: Pull) -> None:
    plan = found.plan
    if found.repo is None:
        console.print(f"{plan.format} is here already; nothing would be fetched.")
    else:
        licence = escape(found.licence or "not said")
        console.print(f"[bold]{escape(found.repo)}[/] at {found.commit}, licence: {licence}")
        for name, bytes_ in found.files:
            console.print(f"  {escape(name)}  {size(bytes_)}")
        console.print(f"{size(found.missing_bytes)} would be fetched.")
    for reason in (*found.reasons, *plan.reasons):
        console.print(f"- {escape(reason)}")
    for one in plan.rejected:
        console.print(f"[dim]not {escape(one.choice)}: {escape(one.reason)}[/]")
