"""Every environment variable and default path of qlangchain, in one place.

Values are read when they are needed, never at import, so that a program (or a test) may change the
environment at any time. An unreadable value is an error that names the variable, not a silent default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qlangchain.errors import InvalidInputError

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}
_NAME = re.compile(r"\+|[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_LONGEST = 1e6  # seconds, 11 days: sockets and locks cannot wait for ever by a number ("inf")


def _setting(variable: str, default: Any, help: str) -> Any:
    return field(default=default, metadata={"variable": variable, "help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One reading of the environment. `metadata` of each field has its variable and its help text."""

    home: Path | None = _setting(
        "QLANGCHAIN_HOME", None, "where artifacts are kept; default: the user's data directory"
    )
    offline: bool = _setting("QLANGCHAIN_OFFLINE", False, "1 = never use the network (HF_HUB_OFFLINE=1 means the same)")
    quantizers: tuple[str, ...] | None = _setting(
        "QLANGCHAIN_QUANTIZERS",
        None,
        "publishers whose quantizations are trusted, separated by commas, instead of the curated ones; "
        'a first entry of "+" keeps these as well',
    )
    engine: str | None = _setting(
        "QLANGCHAIN_ENGINE", None, "xllamacpp or llama-server; default: whichever is there, xllamacpp first"
    )
    llama_server: Path | None = _setting(
        "QLANGCHAIN_LLAMA_SERVER", None, "path of a llama-server binary; default: the one on PATH"
    )
    threads: int | None = _setting(
        "QLANGCHAIN_THREADS", None, "threads of an engine; default: the usable physical cores"
    )
    keep_alive: float = _setting("QLANGCHAIN_KEEP_ALIVE", 300.0, "seconds that an idle engine stays loaded")
    start_timeout: float = _setting("QLANGCHAIN_START_TIMEOUT", 300.0, "seconds that an engine may take to load")
    endpoint_key: str | None = _setting(
        "QLANGCHAIN_ENDPOINT_KEY", None, 'API key for endpoint="http://..."; never logged'
    )

    vllm_endpoint: str | None = _setting(
        "QLANGCHAIN_VLLM_ENDPOINT", None, "URL of the vLLM server that qlangchain.compat.VLLM uses"
    )
    vllm_python: Path | None = _setting(
        "QLANGCHAIN_VLLM_PYTHON", None, "Python interpreter that has vLLM, instead of `qlangchain env create vllm`"
    )
    gptqmodel_python: Path | None = _setting("QLANGCHAIN_GPTQMODEL_PYTHON", None, "the same for gptqmodel")
    llm_compressor_python: Path | None = _setting(
        "QLANGCHAIN_LLM_COMPRESSOR_PYTHON", None, "the same for llm-compressor"
    )
    autoawq_python: Path | None = _setting("QLANGCHAIN_AUTOAWQ_PYTHON", None, "the same for autoawq")
    auto_gptq_python: Path | None = _setting("QLANGCHAIN_AUTO_GPTQ_PYTHON", None, "the same for auto-gptq")
    llama_cpp_python: Path | None = _setting("QLANGCHAIN_LLAMA_CPP_PYTHON", None, "the same for llama-cpp-python")

    def __post_init__(self) -> None:
        if self.engine not in (None, "xllamacpp", "llama-server"):
            raise InvalidInputError(
                f"QLANGCHAIN_ENGINE is {self.engine!r}.", hint="Known engines: xllamacpp, llama-server."
            )
        for name in ("threads", "keep_alive", "start_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInputError(f"QLANGCHAIN_{name.upper()} is {value}.", hint="It must be above zero.")

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "endpoint_key")
        return f"Settings({', '.join(shown)})"

    @property
    def store(self) -> Path:
        """The directory of artifacts, absolute. It need not exist yet."""
        if self.home is not None:
            return self.home.expanduser().absolute()
        import platformdirs

        return Path(platformdirs.user_data_dir("qlangchain", appauthor=False))


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ` (default: the process's environment)."""
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for entry in fields(Settings):
        variable = entry.metadata["variable"]
        raw = source.get(variable, "").strip()
        if raw:
            values[entry.name] = _parse(variable, raw, str(entry.type))
    if source.get("HF_HUB_OFFLINE", "").strip().lower() in _TRUE:
        values["offline"] = True
    return Settings(**values)


def _parse(variable: str, raw: str, kind: str) -> Any:
    try:
        if kind.startswith("bool"):
            if raw.lower() not in _TRUE | _FALSE:
                raise ValueError
            return raw.lower() in _TRUE
        if kind.startswith("int"):
            return int(raw)
        if kind.startswith("float"):
            return min(float(raw), _LONGEST)
        if kind.startswith("tuple"):
            names = tuple(name.strip() for name in raw.split(",") if name.strip())
            if not names or not all(_NAME.fullmatch(name) for name in names):
                raise ValueError
            return names
        return Path(raw).expanduser() if kind.startswith("Path") else raw
    except (ValueError, RuntimeError):  # RuntimeError: "~" of a user that is not there
        words = {"bool": "1 or 0", "int": "a whole number", "float": "a number", "Path": "a path"}
        expected = words.get(kind.partition(" ")[0], "names of organizations, separated by commas")
        raise InvalidInputError(f"{variable} is {raw!r}.", hint=f"It must be {expected}.") from None
