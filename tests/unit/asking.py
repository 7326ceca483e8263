"""Asking a scripted server by hand, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from qlangchain.runtimes.scripted import Scripted

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def user(text: str, **more: Any) -> dict[str, Any]:
    """A chat request with one message."""
    return {"messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def echo() -> Iterator[Scripted]:
    with Scripted() as script:
        yield script


def http(script: Scripted) -> httpx.Client:
    headers = {"Authorization": f"Bearer {script.api_key}"}
    return httpx.Client(base_url=script.url, headers=headers, trust_env=False)


def post(script: Scripted, path: str, body: Any) -> Any:
    with http(script) as client:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()


def refused(script: Scripted, path: str, body: Any) -> dict[str, Any]:
    with http(script) as client:
        response = client.post(path, json=body)
        error: dict[str, Any] = response.json()["error"]
        assert response.status_code == error["code"] >= 400
        return error


def events(script: Scripted, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with http(script) as client:
        lines = client.post(path, json={**body, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
