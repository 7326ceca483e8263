"""LangChain's standard tests for chat models, on the scripted server: the adapter alone, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from qlangchain import ChatQuantized
from qlangchain.runtimes.scripted import Scripted

SERVED = "scripted-model"


class Abilities:
    """What the model can do, said for both suites. A capability that is off would skip its tests."""

    has_tool_calling = True
    has_tool_choice = True
    has_structured_output = True
    supports_json_mode = True
    returns_usage_metadata = True
    supports_image_inputs = False
    supports_image_urls = False
    supports_image_tool_message = False
    supports_pdf_inputs = False
    supports_pdf_tool_message = False
    supports_audio_inputs = False
    supports_video_inputs = False
    supports_anthropic_inputs = False
    chat_model_class = ChatQuantized


class TestChatQuantizedUnit(Abilities, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "demo", "hardware": "cpu"}


class TestChatQuantizedOnTheCopycat(Abilities, ChatModelIntegrationTests):
    script: Scripted

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _served(cls) -> Iterator[None]:
        with Scripted(model=SERVED) as script:
            cls.script = script
            yield

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"endpoint": self.script.url, "api_key": self.script.api_key, "temperature": 0}
