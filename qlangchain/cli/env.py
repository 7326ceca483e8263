"""`qlangchain env create|list|remove`: environments of their own for heavy tools."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from qlangchain.cli.options import Json
from qlangchain.cli.output import console, errors, print_json, size
from qlangchain.toolchains import environments, pins
from qlangchain.toolchains.environments import Environment

app = typer.Typer(help="Environments of their own for vLLM, gptqmodel and other heavy tools.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help=f"One of {', '.join(pins.read())}.")]


@app.command("create")
def create(name: Name, json: Json = False) -> None:
    """Install a tool from pinned requirements into an environment of its own; what is there is left as it is."""
    toolchain = pins.find(name)
    if not json:
        console.print(f"[bold]{escape(name)}[/]: {escape(toolchain.purpose)}")
        if environments.locate(name) is None:
            console.print(
                f"This takes up to {size(toolchain.size_bytes)} and about {toolchain.minutes:g} minutes. "
                f"{escape(toolchain.note)}"
            )
        if not toolchain.maintained:
            errors.print(f"[yellow]Note:[/] {escape(name)} is no longer maintained.")
    with console.status("Starting …") if not json else _Silent() as status:
        made = environments.create(name, progress=lambda line: status.update(escape(line[: console.width - 4])))
    if json:
        print_json(_row(made))
    else:
        console.print(f"[green]✓[/] {escape(name)} is ready: {escape(str(made.python))}")


@app.command("list")
def list_(json: Json = False) -> None:
    """Show which environments are there, and what each is for."""
    rows = environments.environments()
    if json:
        print_json({"environments": [_row(row) for row in rows]})
        return
    table = Table("name", "state", "size", "for", box=None, pad_edge=False)
    for row in rows:
        toolchain = pins.find(row.name)
        state = f"[green]{row.state}[/]" if row.is_usable else row.state
        purpose = toolchain.purpose + ("" if toolchain.maintained else " (no longer maintained)")
        table.add_row(escape(row.name), state, size(row.size_bytes) if row.size_bytes else "", escape(purpose))
    console.print(table)


@app.command("remove")
def remove(name: Name, json: Json = False) -> None:
    """Remove a tool's environment, also half-made and outdated ones."""
    freed = environments.remove(name)
    if json:
        print_json({"name": name, "freed_bytes": freed})
    elif freed:
        console.print(f"{escape(name)} is removed; {size(freed)} are free again.")
    else:
        console.print(f"There was no environment for {escape(name)}.")


class _Silent:
    """A status line for scripts: none."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *reason: object) -> None:
        return None

    def update(self, line: str) -> None:
        """Show nothing."""


def _row(environment: Environment) -> dict[str, Any]:
    return {**asdict(environment), "purpose": pins.find(environment.name).purpose, "usable": environment.is_usable}
