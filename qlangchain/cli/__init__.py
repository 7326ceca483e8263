"""The command line. Each command is a file of its own; this one joins them and turns errors into exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qlangchain import __version__
from qlangchain.cli import cache, chat, compare, demo, doctor, env, plan, pull, quantize, run, verify
from qlangchain.cli.output import fail
from qlangchain.errors import QlangchainError

app = typer.Typer(
    name="qlangchain",
    help="Quantized local models for LangChain: chosen for this machine, verified, served.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
app.command("pull")(pull.pull)
app.command("quantize")(quantize.quantize)
app.command("verify")(verify.verify)
app.add_typer(env.app, name="env")
app.add_typer(cache.app, name="cache")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"qlangchain {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take what comes before the command."""


def main() -> None:
    """Run the command line: exit code 0 for success, 1 for an error of ours, 2 for wrong usage, 130 for Ctrl-C."""
    try:
        app()
    except QlangchainError as error:
        fail(error, as_json="--json" in sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)
    except ValueError as error:  # pydantic's: an argument out of its limits
        fail(error, as_json="--json" in sys.argv)
