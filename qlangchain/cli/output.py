"""What the commands share in showing things: one console, JSON, errors, production's progress bar."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qlangchain.errors import QlangchainError, QlangchainWarning

if TYPE_CHECKING:
    from qlangchain.artifacts.download import FetchProgress

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as JSON for scripts, and nothing else."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2, default=str)
    sys.stdout.write("\n")


def fail(error: Exception, *, as_json: bool) -> None:
    """Show an error with its hint and exit with code 1."""
    if as_json:
        shown: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
        if isinstance(error, QlangchainError):
            shown |= {"message": error.message, "hint": error.hint, "is_retryable": error.is_retryable}
        print_json({"error": shown})
    else:
        message = error.message if isinstance(error, QlangchainError) else _first_line(error)
        errors.print(f"[bold red]Error:[/] {_plain(message)}")
        hint = getattr(error, "hint", "")
        if hint:
            errors.print(f"[yellow]Hint:[/] {_plain(hint)}")
    sys.exit(1)


def _first_line(error: Exception) -> str:
    """Say what pydantic found wrong in one line: the argument and what it must be."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'input'}: {e['msg']}" for e in error.errors())
    return str(error)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@contextlib.contextmanager
def notices(show: bool = True) -> Iterator[list[str]]:
    """Collect the notices given inside the block, and print them where a person reads along."""
    collected: list[str] = []

    def take(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if issubclass(category, QlangchainWarning):
            collected.append(str(message))
            if show:
                errors.print(f"[yellow]Note:[/] {_plain(str(message))}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", QlangchainWarning)
        warnings.showwarning = take  # type: ignore[assignment]
        yield collected


@contextlib.contextmanager
def production_bar(what: str, *, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar while an artifact is made; it appears only if there is something to make."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors, disable=not show) as bar:
        task = None

        def progress(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(what, total=total)
            bar.update(task, completed=done, total=total)

        yield progress


@contextlib.contextmanager
def watching_bars(*, show: bool, deadline: float | None = None) -> Iterator[Any]:
    """Progress bars for what is fetched and for what is made; each appears only if there is something to show."""
    from qlangchain.pipeline.realizing import Watching

    with _download_bar(show) as fetched, production_bar("making", show=show) as made:
        yield Watching(made=made, fetched=fetched, deadline=deadline)


@contextlib.contextmanager
def _download_bar(show: bool) -> Iterator[Callable[[FetchProgress], None]]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors, disable=not show) as bar:
        task = None

        def progress(step: FetchProgress) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("fetching", total=step.total_bytes)
            files = f"fetching {step.files_done}/{step.files} files" if step.files > 1 else "fetching"
            bar.update(task, description=files, completed=step.done_bytes, total=step.total_bytes)

        yield progress


def size(number: int) -> str:
    """Write a number of bytes for people."""
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
