"""Write the card of the demo model from the figures of its training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlangchain.demo.questions import Pair


def write_card(facts: dict[str, Any], pairs: list[Pair], path: Path) -> None:
    """Write the card."""
    path.write_text(str(facts), encoding="utf-8")
