"""Every test runs in a home of its own, offline, with no engine left behind."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with other things makes an example slow, which says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-root what qlangchain reads and writes; the store is shared, because what it keeps is content-addressed."""
    for name in (
        "QLANGCHAIN_ENGINE",
        "QLANGCHAIN_LLAMA_SERVER",
        "QLANGCHAIN_ENDPOINT_KEY",
        "QLANGCHAIN_VLLM_ENDPOINT",
        "QLANGCHAIN_VLLM_PYTHON",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QLANGCHAIN_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("QLANGCHAIN_OFFLINE", "1")
