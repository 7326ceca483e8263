"""The environment: every variable, every default, and what is said of values that cannot be."""

from __future__ import annotations

import contextlib
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain import settings
from qlangchain.errors import InvalidInputError
from qlangchain.settings import Settings


def test_the_defaults_are_those_of_an_empty_environment() -> None:
    assert settings.read({}) == Settings()
    assert settings.read({field.metadata["variable"]: "  " for field in fields(Settings)}) == Settings()


@pytest.mark.parametrize(
    ("variable", "raw", "name", "value"),
    [
        ("QLANGCHAIN_HOME", "/somewhere", "home", Path("/somewhere")),
        ("QLANGCHAIN_HOME", "~/models", "home", Path.home() / "models"),
        ("QLANGCHAIN_OFFLINE", "1", "offline", True),
        ("QLANGCHAIN_OFFLINE", "TRUE", "offline", True),
        ("QLANGCHAIN_OFFLINE", "on", "offline", True),
        ("QLANGCHAIN_OFFLINE", "No", "offline", False),
        ("QLANGCHAIN_OFFLINE", "0", "offline", False),
        ("QLANGCHAIN_ENGINE", "llama-server", "engine", "llama-server"),
        ("QLANGCHAIN_ENGINE", " xllamacpp ", "engine", "xllamacpp"),
        ("QLANGCHAIN_LLAMA_SERVER", "/opt/llama server", "llama_server", Path("/opt/llama server")),
        ("QLANGCHAIN_THREADS", "3", "threads", 3),
        ("QLANGCHAIN_KEEP_ALIVE", "0.5", "keep_alive", 0.5),
        ("QLANGCHAIN_KEEP_ALIVE", "inf", "keep_alive", 1e6),
        ("QLANGCHAIN_START_TIMEOUT", "1e300", "start_timeout", 1e6),
        ("QLANGCHAIN_QUANTIZERS", "my-team, bartowski", "quantizers", ("my-team", "bartowski")),
        ("QLANGCHAIN_QUANTIZERS", "+,my-team", "quantizers", ("+", "my-team")),
        ("QLANGCHAIN_ENDPOINT_KEY", "s e c r e t", "endpoint_key", "s e c r e t"),
    ],
)
def test_each_variable(variable: str, raw: str, name: str, value: Any) -> None:
    assert settings.read({variable: raw}) == replace(Settings(), **{name: value})


@pytest.mark.parametrize(
    ("variable", "raw"),
    [
        ("QLANGCHAIN_OFFLINE", "perhaps"),
        ("QLANGCHAIN_OFFLINE", "2"),
        ("QLANGCHAIN_ENGINE", "vllm"),
        ("QLANGCHAIN_THREADS", "many"),
        ("QLANGCHAIN_THREADS", "1.5"),
        ("QLANGCHAIN_THREADS", "0"),
        ("QLANGCHAIN_THREADS", "-2"),
        ("QLANGCHAIN_THREADS", "9" * 5000),
        ("QLANGCHAIN_KEEP_ALIVE", "soon"),
        ("QLANGCHAIN_KEEP_ALIVE", "0"),
        ("QLANGCHAIN_KEEP_ALIVE", "-1"),
        ("QLANGCHAIN_KEEP_ALIVE", "nan"),
        ("QLANGCHAIN_START_TIMEOUT", "-inf"),
        ("QLANGCHAIN_QUANTIZERS", ","),
        ("QLANGCHAIN_QUANTIZERS", "my team"),
        ("QLANGCHAIN_QUANTIZERS", "../x"),
        ("QLANGCHAIN_HOME", "~nobody-of-this-name/models"),
    ],
)
def test_values_that_cannot_be_name_their_variable(variable: str, raw: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        settings.read({variable: raw})
    assert variable in caught.value.message
    assert caught.value.hint


@given(st.sampled_from([field.metadata["variable"] for field in fields(Settings)]), st.text())
def test_any_text_is_a_value_or_an_invalid_input(variable: str, raw: str) -> None:
    with contextlib.suppress(InvalidInputError):
        found = settings.read({variable: raw})
        assert found.keep_alive > 0
        assert found.threads is None or found.threads > 0


@pytest.mark.parametrize("raw", ["1", "true", "YES", "on"])
def test_the_hubs_own_variable_means_the_same(raw: str) -> None:
    assert settings.read({"HF_HUB_OFFLINE": raw}).offline
    assert settings.read({"HF_HUB_OFFLINE": raw, "QLANGCHAIN_OFFLINE": "0"}).offline
    assert not settings.read({"HF_HUB_OFFLINE": "0"}).offline


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_THREADS", "3")
    assert settings.read().threads == 3
    monkeypatch.setenv("QLANGCHAIN_THREADS", "5")
    assert settings.read().threads == 5


def test_the_key_is_not_shown() -> None:
    found = settings.read({"QLANGCHAIN_ENDPOINT_KEY": "very-secret"})
    assert "very-secret" not in repr(found)
    assert "very-secret" not in str(found)
    assert "keep_alive=300.0" in repr(found)


def test_the_store_is_absolute_and_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = settings.read({"QLANGCHAIN_HOME": "models"}).store
    assert store == tmp_path / "models"
    assert not store.exists()
    assert settings.read({}).store.is_absolute()
    assert settings.read({}).store.name == "qlangchain"


def test_every_field_has_a_variable_and_a_help_text() -> None:
    variables = [field.metadata["variable"] for field in fields(Settings)]
    assert len(set(variables)) == len(variables)
    assert all(variable.startswith("QLANGCHAIN_") for variable in variables)
    assert all(field.metadata["help"] for field in fields(Settings))


def test_a_reading_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().offline = True  # type: ignore[misc]
