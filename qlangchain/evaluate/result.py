"""What a comparison found: rows of plain values, with their way to JSON and back, to Markdown and to a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from qlangchain.errors import InvalidInputError
from qlangchain.evaluate.agreement import Agreement
from qlangchain.evaluate.figures import Figures

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Group


@dataclass(frozen=True, slots=True)
class Row:
    """One format. Sizes in bytes, seconds, tokens per second; None where it was not measured.

    `judged_by` says what computed `figures`. `runtime` is the engine that answered, empty where none served it;
    `answered_by` then says what computed the answers instead. `resident_bytes` is the memory of the engine's processes,
    `gpu_bytes` what the GPUs' free memory fell by. `problems` are the reasons for what is missing.
    """

    format: str
    method: str = ""
    size_bytes: int | None = None
    artifact: str = ""
    figures: Figures | None = None
    judged_by: str = ""
    runtime: str = ""
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None
    resident_bytes: int | None = None
    gpu_bytes: int | None = None
    agreement: Agreement | None = None
    answered_by: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model in several formats on one machine and one text.

    `text` is the text's SHA-256 and `tokens` how many of its tokens were predicted; `reference` names what the
    formats were judged against, `reference_how` what computed it. `context_length` is in tokens.
    """

    model: str
    machine: str
    text: str
    tokens: int
    reference: str
    reference_how: str
    reference_perplexity: float | None
    prompts: int
    context_length: int
    date: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """The tables of size, memory and speed, of precision, and of answers, as far as they were measured."""
        from qlangchain.evaluate.tables import markdown

        return markdown(self)

    def to_rich(self) -> Group:
        """The same tables for a terminal."""
        from qlangchain.evaluate.tables import rich_tables

        return rich_tables(self)

    def __rich__(self) -> Group:
        return self.to_rich()

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw loss against size, and speed, into a file (.png, .svg, .pdf), and return its path.

        Raises MissingDependencyError where matplotlib is not installed and InvalidInputError where nothing can be
        drawn, or not in such a file.
        """
        from qlangchain.evaluate.plots import plot

        return plot(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return asdict(self)

    def to_json(self) -> str:
        """Everything as JSON; `from_json` is the way back."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read what `to_json` wrote; raises InvalidInputError for anything else."""
        try:
            content = json.loads(text)
            rows = tuple(_row(row) for row in content.pop("rows"))
            return cls(**{**content, "rows": rows, "notes": tuple(content["notes"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(f"This is no comparison: {error!r}.", hint="Pass what to_json() gave.") from error


def _row(content: Mapping[str, Any]) -> Row:
    values = dict(content)
    values["figures"] = values["figures"] and Figures(**values["figures"])
    values["agreement"] = values["agreement"] and Agreement(**values["agreement"])
    values["problems"] = tuple(values["problems"])
    if unknown := set(values) - {entry.name for entry in fields(Row)}:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    return Row(**values)
