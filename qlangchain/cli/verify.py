"""`qlangchain verify`: is it really quantized, is it sound, which kernel will run it, what memory, what batch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from qlangchain.cli.compare import work_bar
from qlangchain.cli.options import Context, Json
from qlangchain.cli.output import console, notices, print_json, size


def verify(
    path: Annotated[Path, typer.Argument(help="A GGUF file, or a directory of safetensors.")],
    source: Annotated[
        Path | None, typer.Option("--source", help="The full-precision model that it was made from.")
    ] = None,
    context: Context = None,
    json: Json = False,
) -> None:
    """Examine a quantized model: what it really holds, and how it will run here. Exit code 1 where it is not sound."""
    from qlangchain.quantizer.examine import examine

    with notices(show=not json), work_bar(show=not json) as progress:
        found = examine(path, source, context_length=context, progress=progress)
    if json:
        print_json(found.to_dict())
    else:
        _show(found.to_dict())
    raise typer.Exit(0 if found.is_sound else 1)


def _show(found: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    kind = f"{found['method']} {found['format']}" if found["quantized"] else f"no, {found['format']}"
    table.add_row(
        "really quantized", f"{kind}: {found['bits_per_weight']:.2f} bits a weight, {size(found['size_bytes'])}"
    )
    types = ", ".join(f"{count} {name}" for name, count in found["types"].items())
    table.add_row("tensors", escape(types))
    for runtime, why_not in found["kernels"].items():
        table.add_row(f"on {runtime}", "[green]has a kernel here[/]" if not why_not else escape(why_not))
    if found["memory"] is not None:
        table.add_row("memory", f"{size(found['memory'])} with a context of {found['context_length']:,} tokens")
        table.add_row("batch", f"{found['batch']} requests at once on {found['runtime']}")
    if found["note"]:
        table.add_row("not planned", escape(found["note"]))
    if found.get("error") is not None:
        table.add_row("error of the weights", f"{found['error']:.4f}, {found['worst_error']:.4f} at most")
    if found.get("kl") is not None:
        table.add_row("KL divergence", f"{found['kl']:.4f} nats per token, {found['same_first']:.1%} same first")
    console.print(table)
    for problem in found["problems"]:
        console.print(f"[red]✗[/] {escape(problem)}")
    if not found["problems"]:
        console.print("[green]✓[/] sound" + ("" if found["compared"] else ", as far as it shows without --source"))
