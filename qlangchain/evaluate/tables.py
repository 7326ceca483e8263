"""Tables of a comparison, once as text cells, then as Markdown or for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

    from qlangchain.evaluate.result import Comparison, Row

NONE = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the names of the columns, and rows of cells; the first column is text, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table alone, without its title."""
        head = [f"| {' | '.join(self.columns)} |", f"|{'---|' + '---:|' * (len(self.columns) - 1)}"]
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        return "\n".join([*head, *body]) + "\n"


def tables(found: Comparison) -> list[Table]:
    """The tables that the comparison has figures for."""
    made = [row for row in found.rows if row.size_bytes is not None]
    result = []
    if made:
        result.append(Table(f"Size, memory and speed: {found.model} on {found.machine}", _SPEED, _speed(made)))
    if judged := [row for row in made if row.figures]:
        title = f"Precision on {found.tokens:,} tokens of the text {found.text[:12]}"
        if found.reference_perplexity is not None:
            title += f", whose perplexity at full precision is {found.reference_perplexity:.4g}"
        result.append(Table(title, _PRECISION, tuple(_precision(row) for row in judged)))
    if any(row.agreement for row in made):
        result.append(answers(found))
    return result


def answers(found: Comparison) -> Table:
    """How often each format gives the same answer as full precision, and the wanted one where it is known."""
    rows = [row for row in found.rows if row.agreement]
    right = any(row.agreement and row.agreement.right is not None for row in rows)
    cells = []
    for row in rows:
        assert row.agreement is not None
        given = row.agreement
        wanted = (_share(given.right),) if right else ()
        cells.append((row.format, _size(row.size_bytes), *wanted, _share(given.same), _share(given.prefix)))
    columns = ("format", "size", *(("exact answers",) if right else ()), "same as full precision", "common beginning")
    return Table(f"Answers to {found.prompts} prompts", columns, tuple(cells))


def summary(found: Comparison) -> Table:
    """What each format costs, in one table: size, divergence, and answers where prompts were asked."""
    cells = []
    for row in found.rows:
        if row.size_bytes is None:
            continue
        given, figures = row.agreement, row.figures
        cells.append(
            (
                row.format,
                _size(row.size_bytes),
                NONE if figures is None else f"{figures.kl:.4f}",
                NONE if figures is None else _change(figures.ratio, 1),
                _share(given.right if given else None),
                _share(given.same if given else None),
                row.runtime or row.answered_by or NONE,
            )
        )
    columns = (
        "format",
        "size",
        "KL divergence",
        "change of perplexity",
        "exact answers",
        "same as full precision",
        "answered by",
    )
    return Table(f"{found.model}: {found.prompts} prompts, {found.tokens:,} tokens of text", columns, tuple(cells))


_SPEED = ("format", "size", "memory", "first token", "tokens/s", "engine")
_PRECISION = (
    "format",
    "perplexity",
    "over full precision",
    "KL divergence (nats)",
    "same favourite token",
    "computed by",
)


def _speed(rows: Sequence[Row]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            row.format, _size(row.size_bytes), _memory(row), _seconds(row.first_token_seconds),
            NONE if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}", row.runtime or NONE,
        )
        for row in rows
    )  # fmt: skip


def _precision(row: Row) -> tuple[str, ...]:
    figures = row.figures
    assert figures is not None
    return (
        row.format,
        f"{figures.perplexity:.4g}",
        _change(figures.ratio, 2),
        f"{figures.kl:.4f} ± {figures.kl_error:.4f}",
        f"{figures.top1:.1%}",
        row.judged_by,
    )


def problems(found: Comparison) -> list[str]:
    """What is missing, with the reasons."""
    return [*found.notes, *(f"{row.format}: {problem}" for row in found.rows for problem in row.problems)]


def markdown(found: Comparison) -> str:
    """All tables with their titles, and the reasons for what is missing."""
    parts = [f"### {table.title}\n\n{table.markdown()}" for table in tables(found)]
    if missing := problems(found):
        parts.append("### Not measured\n\n" + "".join(f"- {' '.join(one.split())}\n" for one in missing))
    how = f"Measured on {found.date}"
    if found.reference:
        how += f" against {found.reference} ({found.reference_how})"
    parts.append(f"{how}, with a context of {found.context_length:,} tokens.\n")
    return "\n".join(parts)


def rich_tables(found: Comparison) -> Group:
    """The same for a terminal."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown: list[Any] = []
    for table in tables(found):
        rich = RichTable(title=escape(table.title), title_justify="left")
        for place, column in enumerate(table.columns):
            rich.add_column(column, justify="right" if place else "left")
        for row in table.rows:
            rich.add_row(*(escape(cell) for cell in row))
        shown.append(rich)
    shown += [f"[yellow]•[/] {escape(' '.join(one.split()))}" for one in problems(found)]
    return Group(*shown)


def _size(number: int | None) -> str:
    if number is None:
        return NONE
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def _change(ratio: float, digits: int) -> str:
    """A ratio as a change in percent; what rounds to nothing has no sign."""
    if not math.isfinite(ratio):
        return "inf"
    change = round(ratio - 1, digits + 2)
    return f"{change:+.{digits}%}" if change else f"{0:.{digits}%}"


def _memory(row: Row) -> str:
    return _size(row.resident_bytes) + (f" + {_size(row.gpu_bytes)} GPU" if row.gpu_bytes else "")


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _share(share: float | None) -> str:
    return NONE if share is None else f"{share:.1%}"
