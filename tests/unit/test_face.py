"""The public face: what it offers, what it costs, and which way the rooms may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qlangchain

PACKAGE = Path(qlangchain.__file__).parent

# Each room may import from itself and from those in earlier lines.
ORDER = [
    {"errors"},
    {"types", "settings"},
    {"hardware", "catalog", "selection"},
    {"artifacts", "toolchains"},
    {"produce"},
    {"runtimes"},
    {"pipeline"},
    {"quantizer"},
    {"models"},
    {"compat"},
    {"evaluate", "chains"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
PURE = {"selection"}
FORBIDDEN = {
    "selection": {"os", "pathlib", "time", "httpx", "subprocess", "socket", "langchain_core", "numpy"},
    "runtimes": {"langchain_core", "torch"},
    "models": {"torch", "llama_cpp", "vllm", "xllamacpp"},
}


def rooms() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("__init__", "demo"):
            found.append((parts[0], path))
    return found


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "qlangchain"}
    return found


def test_every_room_has_its_place() -> None:
    assert {room for room, _ in rooms()} <= set(LEVEL)


@pytest.mark.parametrize(("room", "path"), rooms(), ids=lambda value: value.name if isinstance(value, Path) else value)
def test_imports_point_up_the_tree(room: str, path: Path) -> None:
    for name in imports(path):
        if name.startswith("qlangchain."):
            other = name.split(".")[1]
            if other != "demo" and other in LEVEL:
                assert other == room or LEVEL[other] < LEVEL[room], f"{path.name} imports {name}"


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_rooms_keep_to_themselves(room: str) -> None:
    for owner, path in rooms():
        # A server that is run, never imported: what it is made of is its own affair.
        if owner == room and path.parent.name != "transformers_server":
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & FORBIDDEN[room], path


def test_only_models_and_the_command_line_know_langchain() -> None:
    for room, path in rooms():
        if room not in ("models", "cli", "evaluate", "chains"):
            assert not any(name.startswith("langchain") for name in imports(path)), path


def test_the_public_names_are_pinned() -> None:
    assert qlangchain.__all__ == [
        "ChatQuantized",
        "ModelQuantizer",
        "QuantizedEmbeddings",
        "QuantizedLLM",
        "__version__",
        "choose_quantization_method",
        "compare",
        "detect_hardware",
        "evaluate",
        "get_chat_model",
        "get_embeddings",
        "get_llm",
        "plan",
        "pull",
        "quantize",
        "set_cache",
    ]
    for name in qlangchain.__all__:
        assert getattr(qlangchain, name) is not None
    assert dir(qlangchain) == qlangchain.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'get_lmm'"):
        _ = qlangchain.get_lmm


@pytest.mark.parametrize(
    "statement",
    [
        "import qlangchain",
        "import qlangchain; qlangchain.choose_quantization_method('personal', 'cpu')",
    ],
)
def test_the_face_is_light(statement: str) -> None:
    heavy = {"langchain_core", "numpy", "torch", "pydantic", "httpx", "xllamacpp", "rich", "typer"}
    code = f"{statement}; import sys; print(' '.join(sorted({heavy!r} & set(sys.modules))))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []
