"""The README says what is so: its settings table is generated, and its files and commands exist."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import qlangchain
from qlangchain.settings import Settings

README = Path(__file__).parents[2] / "README.md"
START = "<!-- settings table: generated from qlangchain/settings.py, checked by tests/unit/test_readme.py -->\n"
END = "<!-- end of settings table -->"


def settings_table() -> str:
    rows = ["| variable | meaning |", "|---|---|"]
    rows += [f"| `{f.metadata['variable']}` | {f.metadata['help']} |" for f in fields(Settings)]
    return "\n".join(rows) + "\n"


def test_the_settings_table_is_the_code_s() -> None:
    text = README.read_text(encoding="utf-8")
    there = text.split(START)[1].split(END)[0]
    assert there == settings_table(), f"replace the table in the README by:\n{settings_table()}"


def test_the_rooms_in_the_readme_exist() -> None:
    package = Path(qlangchain.__file__).parent
    tree = re.search(r"```text\nqlangchain/\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert tree
    named = re.findall(r"^  ([\w.]+/?) ", tree[1], re.MULTILINE)
    assert {name.rstrip("/") for name in named} == {
        path.name for path in package.iterdir() if path.name not in ("__pycache__", "py.typed", "__main__.py")
    }


@pytest.mark.parametrize(
    "command", ["demo", "run", "chat", "doctor", "pull", "compare", "cache", "env", "quantize", "verify"]
)
def test_the_commands_in_the_readme_exist(command: str) -> None:
    from typer.testing import CliRunner

    from qlangchain.cli import app

    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert command in shown.output
