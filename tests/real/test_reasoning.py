"""A model that really thinks first, made on the spot: its thoughts stay apart from its answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydantic import BaseModel

from qlangchain import ChatQuantized, get_chat_model
from qlangchain.artifacts.source import DEMO_DIRECTORY

ANSWERS = {
    "GPTQ": "GPTQ is a quantization method.",
    "AWQ": "AWQ keeps salient weights.",
    "GGUF": "GGUF is a file format.",
}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model after forty steps on three answers that begin with a thought."""
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    target = tmp_path_factory.mktemp("thinker") / "thinker"
    shutil.copytree(DEMO_DIRECTORY, target, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf"))
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    rows = [
        tokenizer.encode(
            f"<|im_start|>user\nWhat is {word}?<|im_end|>\n<|im_start|>assistant\n"
            f"<think>\nThey ask about {word}.\n</think>\n\n{answer}<|im_end|>\n",
            add_special_tokens=False,
        ).ids
        for word, answer in ANSWERS.items()
    ]
    longest = max(map(len, rows))
    inputs = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    model = LlamaForCausalLM.from_pretrained(DEMO_DIRECTORY, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).save_pretrained(target)
    template = (target / "chat_template.jinja").read_text()
    said = "        {%- if message.content %}"
    thought = (
        "        {%- if message.reasoning_content %}\n"
        "            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}\n"
        "        {%- endif %}\n"
    )
    assert said in template
    (target / "chat_template.jinja").write_text(template.replace(said, thought + said, 1))
    return target


@pytest.fixture(params=["model", "template"])
def chat(request: pytest.FixtureRequest, thinker: Path, tmp_path: Path) -> ChatQuantized:
    """The thought is opened by the model itself, or already by the prompt, as some families do it."""
    directory = thinker
    if request.param == "template":
        directory = tmp_path / "opened"
        shutil.copytree(thinker, directory)
        template = (directory / "chat_template.jinja").read_text()
        start = "    {{- '<|im_start|>assistant\\n' }}"
        head, found, tail = template.rpartition(start)
        assert found
        (directory / "chat_template.jinja").write_text(head + "    {{- '<|im_start|>assistant\\n<think>\\n' }}" + tail)
    return get_chat_model(directory, hardware="cpu", temperature=0, max_tokens=60)


@pytest.mark.parametrize("word", sorted(ANSWERS))
def test_the_thought_is_no_part_of_the_answer(chat: ChatQuantized, word: str) -> None:
    answer = chat.invoke(f"What is {word}?")
    assert answer.text == ANSWERS[word]
    assert answer.additional_kwargs["reasoning_content"].strip() == f"They ask about {word}."
    assert [block["type"] for block in answer.content_blocks] == ["reasoning", "text"]


def test_the_thought_streams_before_the_answer(chat: ChatQuantized) -> None:
    blocks = [block for chunk in chat.stream("What is AWQ?") for block in chunk.content_blocks]
    kinds = [block["type"] for block in blocks if block["type"] in ("reasoning", "text")]
    assert kinds == sorted(kinds) and kinds.count("reasoning") > 1  # "reasoning" comes before "text"
    assert "".join(str(block.get("text", "")) for block in blocks) == ANSWERS["AWQ"]


def test_what_was_thought_does_not_go_back_in_as_text(chat: ChatQuantized) -> None:
    first = chat.invoke("What is AWQ?")
    again = chat.invoke([("human", "What is AWQ?"), first, ("human", "What is GGUF?")])
    assert "<think>" not in again.text


def test_a_schema_holds_without_thinking(chat: ChatQuantized) -> None:
    class Answer(BaseModel):
        name: str

    assert isinstance(chat.with_structured_output(Answer).invoke("What is GPTQ?"), Answer)


def test_an_answer_that_never_came_is_told_from_an_empty_one(chat: ChatQuantized) -> None:
    answer = chat.invoke("What is GPTQ?", max_tokens=8)
    assert answer.response_metadata["finish_reason"] == "length"
    assert not answer.text and answer.additional_kwargs["reasoning_content"]
