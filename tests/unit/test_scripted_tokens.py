"""The scripted server's tokens, chat template and vectors, and the routes that show them."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.asking import TOOL, http, post, user
from unit.asking import echo as echo  # noqa: PLC0414 - a fixture

from qlangchain.runtimes import scripted_tokens as tokens
from qlangchain.runtimes.protocol import CHAT
from qlangchain.runtimes.scripted import Scripted


@settings(deadline=None)
@given(st.text(max_size=60))
def test_tokens_join_to_the_text(text: str) -> None:
    ids = tokens.tokenize(text)
    assert "".join(tokens.pieces(text)) == text == tokens.detokenize(ids)
    assert all(0 <= token < tokens.VOCABULARY_SIZE < 2**31 for token in ids)


def test_text_is_counted_like_a_model_s() -> None:
    assert tokens.pieces("Hello world, 你好 2024!") == [
        "Hell",
        "o",
        " wor",
        "ld",
        ",",
        " ",
        "你",
        "好",
        " 202",
        "4",
        "!",
    ]
    assert tokens.pieces("<|im_start|>user") == ["<|im_start|>", "user"]


def test_the_tokenizer_s_routes(echo: Scripted) -> None:
    ids = post(echo, "/tokenize", {"content": "Hi 你"})["tokens"]
    assert post(echo, "/detokenize", {"tokens": ids}) == {"content": "Hi 你"}
    shown = post(echo, "/tokenize", {"content": "Hi 你", "with_pieces": True})["tokens"]
    assert [(entry["id"], entry["piece"]) for entry in shown] == list(zip(ids, ["Hi", " ", "你"], strict=True))
    prompt = post(echo, "/apply-template", user("Hi"))["prompt"]
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    counted = post(echo, f"{CHAT}/input_tokens", user("Hi"))["input_tokens"]
    assert counted == len(post(echo, "/tokenize", {"content": prompt})["tokens"])
    assert counted == post(echo, CHAT, user("Hi"))["usage"]["prompt_tokens"]
    assert len(echo.requests) == 1


@pytest.mark.parametrize("tools", [[], [TOOL]])
def test_the_template_that_it_shows_is_the_one_that_it_uses(echo: Scripted, tools: list[Any]) -> None:
    with http(echo) as client:
        props = client.get("/props").json()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "content": "3"},
    ]
    environment = jinja2.Environment(autoescape=False)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    template = environment.from_string(props["chat_template"])
    rendered = template.render(messages=messages, tools=tools, add_generation_prompt=True)
    assert rendered == post(echo, "/apply-template", {"messages": messages, "tools": tools})["prompt"]
    assert props["default_generation_settings"]["n_ctx"] == 4096


def test_rendered_prompts_can_be_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "Wait.", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    prompt = tokens.render(messages, [TOOL])
    assert tokens.read(prompt) == (messages, [TOOL])
    assert tokens.read(prompt + "<tool_call>\n") == (messages, [TOOL])
    assert tokens.read("Once upon <|im_start|>user\na time<|im_end|>\n") == ([], [])


def test_vectors_have_norm_one_and_texts_that_share_words_are_near(echo: Scripted) -> None:
    texts = ["The cat sat on the mat.", "A cat on a mat", "Interest rates rose", "我喜欢猫", "猫在睡觉", ""]
    answer = post(echo, "/v1/embeddings", {"input": texts})
    vectors = [row["embedding"] for row in answer["data"]]
    assert [row["index"] for row in answer["data"]] == list(range(len(texts)))
    assert [len(vector) for vector in vectors] == [64] * len(texts)
    assert all(math.isclose(math.hypot(*vector), 1) for vector in vectors)

    def near(one: int, other: int) -> float:
        return sum(a * b for a, b in zip(vectors[one], vectors[other], strict=True))

    assert near(0, 1) > near(0, 2)
    assert near(3, 4) > near(3, 2)
    assert vectors[0] == post(echo, "/v1/embeddings", {"input": texts[0]})["data"][0]["embedding"]
    assert vectors[0] != post(echo, "/v1/embeddings", {"input": texts[0] + " "})["data"][0]["embedding"]
    by_ids = post(echo, "/v1/embeddings", {"input": tokens.tokenize(texts[0])})
    assert by_ids["data"][0]["embedding"] == vectors[0]
    packed = post(echo, "/v1/embeddings", {"input": texts[0], "encoding_format": "base64"})["data"][0]["embedding"]
    assert struct.unpack("<64f", base64.b64decode(packed)) == pytest.approx(vectors[0], abs=1e-6)
