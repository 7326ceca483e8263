"""`qlangchain compare MODEL`: formats of a model beside each other, on one's own machine, text and prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlangchain.cli import options
from qlangchain.cli.output import console, errors, notices, print_json
from qlangchain.errors import InvalidInputError

if TYPE_CHECKING:
    from qlangchain.toolchains.worker import Progress

_FORMATS = "fp16,gptq-4,gptq-8,awq-4,Q8_0,Q5_1,Q4_K_M,Q4_0"


def compare(
    model: options.Model,
    formats: Annotated[str, typer.Option("--formats", help="Formats, with commas between them.")] = _FORMATS,
    text: Annotated[Path | None, typer.Option("--text", help="A text file to judge by; some pages say most.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="One prompt a line, or JSON lines with 'prompt' and 'answer'.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw loss, size and speed (.png, .svg, .pdf).")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the tables into this file.")] = None,
    hardware: options.HardwareWord = "auto",
    context: Annotated[int, typer.Option("--context", help="Context length in tokens, the same for all.")] = 2048,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens of an answer at most.")] = 64,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens of the text that are predicted at most.")] = 8192,
    judge: Annotated[bool, typer.Option(help="Measure perplexity and KL divergence.")] = True,
    serve: Annotated[bool, typer.Option(help="Run each format on its engine.")] = True,
    json: options.Json = False,
) -> None:
    """Compare formats of a model: size, memory, speed, precision and answers. What is missing is made and kept."""
    from qlangchain.evaluate import compare as compare_formats
    from qlangchain.evaluate import plots

    for path in (text, prompts):
        if path is not None and not path.is_file():
            raise InvalidInputError(f"There is no file {path}.", hint="Check the path.")
    if plot is not None:
        plots.check(plot)
    with notices(show=not json), work_bar(show=not json) as progress:
        found = compare_formats(
            model,
            formats,
            text,
            prompts=prompts,
            hardware=hardware,
            context_length=context,
            max_tokens=max_tokens,
            tokens=tokens,
            judge=judge,
            serve=serve,
            progress=progress,
        )
    if json:
        print_json(found.to_dict())
    else:
        console.print(found)
    if markdown is not None:
        _write(markdown, found.to_markdown())
    if plot is not None:
        found.plot(plot)
    if all(row.size_bytes is None for row in found.rows):
        raise typer.Exit(1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}.", hint="Choose another path.") from error


@contextlib.contextmanager
def work_bar(*, show: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Show what is being done and how long it will take, as far as that is known."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Bar(*columns, TimeElapsedColumn(), console=errors, disable=not show, transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def progress(seen: Progress) -> None:
            left = "" if seen.seconds_left is None else f"{seen.seconds_left:.0f} s left"
            bar.update(task, description=seen.stage, completed=seen.done, total=seen.total or None, left=left)

        yield progress
