"""`qlangchain plan MODEL`: what would run here or on another machine, how, and why. Nothing is fetched or started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from qlangchain.cli import options
from qlangchain.cli.output import console, notices
from qlangchain.errors import InvalidInputError
from qlangchain.selection import explain
from qlangchain.selection.plan import Plan
from qlangchain.types import Gpu, Hardware

_MOST_RUNNER_UPS = 5
_WIDE = 150  # columns
_RANGES = 110  # columns from which speeds are shown with their ranges
_NARROW = {"what": 16}  # where there is no room for them: the longest names are broken there, and quality in words
_WHOLE = ("", "engine", "context", "memory", "GPU", "tokens/s")  # cells that are not broken
_MARKS = {explain.CHOSEN: "✓", explain.RUNNER_UP: "", explain.REJECTED: "✗"}
_COLOURS = {explain.CHOSEN: "bold green", explain.RUNNER_UP: "", explain.REJECTED: "dim"}


def plan(
    model: options.Model,
    hardware: options.HardwareWord = "auto",
    use_case: Annotated[str, typer.Option("--use-case", help="production, research or personal.")] = "personal",
    ram: Annotated[str | None, typer.Option("--ram", help="Plan for a machine with so much memory, as 64GiB.")] = None,
    vram: Annotated[str | None, typer.Option("--vram", help="... with one GPU of so much memory, 0 for none.")] = None,
    cores: Annotated[int | None, typer.Option("--cores", help="... with so many cores.")] = None,
    context: options.Context = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="Requests at once.")] = None,
    format: options.Format = None,
    method: Annotated[str | None, typer.Option("--method", help="GGUF, GPTQ, AWQ, ...")] = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="llamacpp, vllm, transformers, ...")] = None,
    fast: options.Fast = False,
    every: Annotated[bool, typer.Option("--all", help="Show every candidate.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw size, speed, quality (.png, .svg, .pdf).")] = None,
    json: options.Json = False,
) -> None:
    """Say how a model would be run, what it would need and give, and what was not taken and why."""
    from qlangchain import pipeline
    from qlangchain.cli import plan_plot

    if plot is not None:
        plan_plot.check(plot)
    with notices(show=not json):
        found = pipeline.plan(
            model,
            hardware=hardware,
            machine=_machine(ram, vram, cores),
            use_case=use_case,
            precision_required=not fast,
            context_length=context,
            concurrency=concurrency,
            method=method,
            format=format,
            runtime=runtime,
        )
    if json:
        typer.echo(found.to_json())
    else:
        console.print(_table(found, every=every))
        console.print(found.explain(), markup=False, soft_wrap=True)
    if plot is not None:
        plan_plot.draw(found, plot)


def _machine(ram: str | None, vram: str | None, cores: int | None) -> Hardware | None:
    """Return this machine with what is imagined of it; None where nothing is."""
    if ram is None and vram is None and cores is None:
        return None
    from qlangchain.hardware import detect, parse_size

    here = detect()
    if ram is not None:
        size = parse_size(ram)
        here = replace(here, memory_total=size, memory_available=size)
    if vram is not None:
        size = parse_size(vram)
        name = f"a GPU of {explain.size(size)}"
        here = replace(here, gpus=(Gpu(name, size, size),) if size else ())
    if cores is not None:
        if cores < 1:
            raise InvalidInputError(f"--cores {cores} cannot be.", hint="Pass 1 or more.")
        here = replace(here, cores=cores)
    # Its bandwidth and its disk are another's.
    return replace(
        here, bandwidth_bytes=here.bandwidth_bytes if ram is None and cores is None else None, disk_free=None
    )


def _table(found: Plan, *, every: bool) -> Table:
    """Show the candidates side by side: what was chosen, and a few runner-ups or all of them.

    Reasons, and what was rejected, are columns and rows where there is room; the sentences below have them anyway.
    """
    wide = console.width >= _WIDE
    columns = explain.COLUMNS if wide else explain.COLUMNS[:-1]
    narrow = console.width < _RANGES
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0) if narrow else (0, 1))
    for column in columns:
        right = column in ("memory", "GPU", "tokens/s")
        table.add_column(
            column, overflow="fold", no_wrap=column in _WHOLE, justify="right" if right else "left",
            width=_NARROW.get(column) if narrow else None,
        )  # fmt: skip
    runner_ups = 0
    for row in explain.rows(found):
        runner_ups += row.verdict == explain.RUNNER_UP
        if row.verdict == explain.REJECTED and not wide:
            continue
        if row.verdict == explain.RUNNER_UP and runner_ups > _MOST_RUNNER_UPS and not every:
            continue
        shown = replace(row, speed=row.speed.partition(" (")[0]) if narrow else row
        cells = (_MARKS[row.verdict], *shown.cells[1 : len(columns)])
        table.add_row(*(escape(cell) for cell in cells), style=_COLOURS[row.verdict])
    if runner_ups > _MOST_RUNNER_UPS and not every:
        table.caption = f"and {runner_ups - _MOST_RUNNER_UPS} more; --all shows them"
        table.caption_justify = "left"
    return table
