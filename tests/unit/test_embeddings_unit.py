"""Embeddings without an engine: what is sent, what is read, what is refused."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from fault_server import FaultServer, answer, running
from langchain_core.embeddings import Embeddings
from langchain_core.exceptions import ContextOverflowError
from langchain_tests.unit_tests import EmbeddingsUnitTests

from qlangchain import QuantizedEmbeddings, get_embeddings, pipeline
from qlangchain.artifacts.pooling import directory_pooling, gguf_pooling
from qlangchain.errors import (
    CorruptFileError,
    EngineBusyError,
    EngineError,
    InvalidInputError,
    PromptTooLongError,
    QlangchainWarning,
    UnsupportedModelError,
    UnsupportedRequestError,
)
from qlangchain.models import base, embeddings
from qlangchain.runtimes import protocol
from qlangchain.runtimes.channel import Channel
from qlangchain.runtimes.embedding import vectors_of
from qlangchain.runtimes.preflight import TOKENIZE
from qlangchain.types import Capabilities, Endpoint, EngineOptions

TOO_LONG = answer(413, {"error": "`inputs` must have less than 512 tokens. Given: 785", "error_type": "Validation"})
Embed = Callable[[QuantizedEmbeddings, Any], list[list[float]]]


class TestStandard(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return QuantizedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "demo", "hardware": "cpu"}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with running() as running_server:
        yield running_server


@pytest.fixture(params=["sync", "async"])
def embed(request: pytest.FixtureRequest) -> Embed:
    if request.param == "sync":
        return lambda model, texts: model.embed_documents(texts)
    return lambda model, texts: asyncio.run(model.aembed_documents(texts))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_told", set())
    embeddings._prove.cache_clear()


def rows(*vectors: Any) -> dict[str, Any]:
    return {"data": [{"index": place, "embedding": vector} for place, vector in enumerate(vectors)]}


# What servers answer.


def test_vectors_are_put_in_the_order_of_the_texts() -> None:
    shuffled = {
        "data": [{"index": 2, "embedding": [3]}, {"index": 0, "embedding": [1.5]}, {"index": 1, "embedding": [2]}]
    }
    assert vectors_of(shuffled, 3) == [[1.5], [2.0], [3.0]]
    assert vectors_of({"data": [{"embedding": [1]}, {"embedding": [2]}]}, 2) == [[1.0], [2.0]]
    assert vectors_of({"data": []}, 0) == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (rows([1.0], [2.0], [3.0]), "2 texts with 3 vectors"),
        (rows([1.0]), "2 texts with 1 vectors"),
        ({"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]}, "numbered"),
        ({"data": [{"index": 0, "embedding": [1.0]}, {"index": "1", "embedding": [1.0]}]}, "numbered"),
        (rows([1.0], [1.0, 2.0]), "1 and 2 numbers"),
        (rows([[1.0], [2.0]], [[1.0]]), "finite numbers"),
        (rows([1.0], [math.nan]), "finite numbers"),
        (rows([1.0], [None]), "finite numbers"),
        (rows([1.0], [True]), "finite numbers"),
        (rows("AACAPw==", "AACAPw=="), "finite numbers"),
        (rows([], []), "finite numbers"),
        ({"data": ["a", "b"]}, "OpenAI protocol"),
        ({"embedding": [1.0]}, "OpenAI protocol"),
        ([[1.0], [2.0]], "OpenAI protocol"),
        (None, "OpenAI protocol"),
    ],
)
def test_anything_but_one_vector_per_text_is_an_error(said: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        vectors_of(said, 2)
    assert not caught.value.is_retryable
    assert caught.value.hint


@pytest.mark.parametrize(
    ("said", "asked", "there"),
    [
        (
            "input (513 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
            513,
            512,
        ),
        ("input (600 tokens) is larger than the max context size (512 tokens). skipping", 600, 512),
        (
            "This model's maximum context length is 512 tokens. However, you requested 600 tokens in the input.",
            600,
            512,
        ),
        ("This model's maximum context length is 512 tokens. However, your request has 600 input tokens.", 600, 512),
        ("Input validation error: `inputs` must have less than 512 tokens. Given: 785", 785, 512),
        ("the input length exceeds the context length", None, None),
        ("input is too large to process. increase the physical batch size", None, None),
    ],
)
def test_texts_that_are_too_long_are_known_by_the_servers_words(
    said: str, asked: int | None, there: int | None
) -> None:
    error = protocol.refusal(500, {"error": {"code": 500, "message": said, "type": "server_error"}})
    assert isinstance(error, PromptTooLongError)
    assert (error.prompt_tokens, error.context_length) == (asked, there)


# What a server that runs already is asked, and what comes of its answers.


def test_a_stranger_is_sent_the_standard_and_its_vectors_are_normalized(server: FaultServer, embed: Embed) -> None:
    server.plays[:] = [answer(200, rows([3.0, 4.0], [0.0, 0.0]))]
    model = get_embeddings(endpoint=server.url)
    assert embed(model, ["a", "b"]) == [[0.6, 0.8], [0.0, 0.0]]
    (request,) = server.posts
    assert request.path == "/v1/embeddings"
    assert request.body == {"model": "played", "input": ["a", "b"]}


def test_vectors_are_left_alone_on_request(server: FaultServer, embed: Embed) -> None:
    server.plays[:] = [answer(200, rows([3.0, 4.0]))]
    assert embed(get_embeddings(endpoint=server.url, normalize=False), ["a"]) == [[3.0, 4.0]]


def test_a_server_need_not_list_its_models(server: FaultServer, embed: Embed) -> None:
    server.models = None
    server.plays[:] = [answer(404, "no such route"), answer(200, rows([1.0]))]
    assert embed(get_embeddings("bge", endpoint=server.url), ["a"]) == [[1.0]]
    assert server.posts[0].body["model"] == "bge"


def test_no_texts_ask_nobody(server: FaultServer, embed: Embed) -> None:
    assert embed(get_embeddings(endpoint=server.url), []) == []
    assert server.requests == []


def test_a_wrong_count_is_an_error_and_no_shorter_list(server: FaultServer, embed: Embed) -> None:
    server.plays[:] = [answer(200, rows([1.0], [1.0], [1.0]))]
    with pytest.raises(EngineError, match="2 texts with 3 vectors"):
        embed(get_embeddings(endpoint=server.url), ["a", "b"])


def test_a_busy_server_is_asked_again(server: FaultServer, embed: Embed) -> None:
    busy = answer(503, {"error": {"message": "loading"}})
    server.plays[:] = [busy, answer(200, rows([1.0]))]
    assert embed(get_embeddings(endpoint=server.url), ["a"]) == [[1.0]]
    server.plays[:] = [busy]
    with pytest.raises(EngineBusyError):
        embed(get_embeddings(endpoint=server.url, max_retries=0), ["a"])


def test_a_text_that_is_too_long_is_refused_with_the_server_s_numbers(server: FaultServer, embed: Embed) -> None:
    server.plays[:] = [TOO_LONG]
    with pytest.raises(PromptTooLongError, match="785 tokens asked, 512 available") as caught:
        embed(get_embeddings(endpoint=server.url), ["short", "long " * 785])
    assert isinstance(caught.value, ContextOverflowError)
    assert len(server.posts) == 1


def test_truncate_is_refused_where_tokens_cannot_be_seen(server: FaultServer, embed: Embed) -> None:
    server.plays[:] = [TOO_LONG]
    with pytest.raises(UnsupportedRequestError, match="truncate=True needs a server"):
        embed(get_embeddings(endpoint=server.url, truncate=True), ["long " * 785])


def test_an_empty_text_has_a_vector_and_that_is_said_once(server: FaultServer, embed: Embed) -> None:
    server.plays[:] = [answer(200, rows([1.0], [1.0]))]
    model = get_embeddings(endpoint=server.url)
    with pytest.warns(QlangchainWarning, match="single space"):
        assert len(embed(model, ["", "a"])) == 2
    assert server.posts[0].body["input"] == [" ", "a"]
    embed(model, ["", "a"])  # a second warning would be an error under the test's filters


@pytest.mark.parametrize("texts", ["text", b"text", None, 7, ["a", None], ["a", 1], [["a"]], [b"a"]])
def test_what_is_no_list_of_strings_is_refused(embed: Embed, texts: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"list|no string"):
        embed(get_embeddings(endpoint="http://127.0.0.1:9"), texts)


# Batches and their order, on a server that answers each text with its own number.


class Counter:
    """Stands in for a channel's calls: answers in reverse order, late for the first, and records how many run."""

    def __init__(self, limit: int | None = None, together: int = 0, **capabilities: bool) -> None:
        """With `together`, so many calls wait for each other."""
        self.together = together
        self.barrier, self.abarrier = threading.Barrier(max(1, together)), asyncio.Barrier(max(1, together))
        self.endpoint = Endpoint("http://counter", capabilities=Capabilities(**capabilities))
        self.limit = limit
        self.requests: list[dict[str, Any]] = []
        self.tokenized: list[dict[str, Any]] = []
        self.at_once = self.most = 0

    def answer(self, path: str, body: Callable[[Endpoint], Any]) -> Any:
        request = body(self.endpoint)
        if path == TOKENIZE:
            self.tokenized.append(request)
            # A tokenizer like BERT's: a mark before and one behind, a token for each character.
            tokens = [ord(letter) for letter in request["content"]]
            return {"tokens": [101, *tokens, 102] if request["add_special"] else tokens}
        self.requests.append(request)
        lengths = [len(text) + 2 if isinstance(text, str) else len(text) for text in request["input"]]
        if self.limit and max(lengths) > self.limit:
            raise PromptTooLongError("The prompt does not fit the context.", context_length=self.limit)
        vectors = [[float(text) if str(text).isdigit() else 0.0, 1.0] for text in map(str, request["input"])]
        return {"data": [{"index": i, "embedding": v} for i, v in reversed(list(enumerate(vectors)))]}

    def call(self, path: str, body: Any, **_: Any) -> Any:
        self.at_once += 1
        try:
            self.most = max(self.most, self.at_once)
            if self.together:
                self.barrier.wait(timeout=10)
            time.sleep(0.02 if not self.requests else 0.001)  # the first to begin is not the first to end
            return self.answer(path, body)
        finally:
            self.at_once -= 1

    async def acall(self, path: str, body: Any, **_: Any) -> Any:
        self.at_once += 1
        try:
            self.most = max(self.most, self.at_once)
            if self.together:
                async with asyncio.timeout(10):
                    await self.abarrier.wait()
            await asyncio.sleep(0.02 if not self.requests else 0.001)
            return self.answer(path, body)
        finally:
            self.at_once -= 1


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter]:
    def make(*, slots: int | None = None, **arguments: Any) -> Counter:
        counter = Counter(**arguments)
        options = EngineOptions(context_length=64, slots=slots) if slots else None
        monkeypatch.setattr(QuantizedEmbeddings, "_channel", lambda _: Channel(options=options))
        monkeypatch.setattr(Channel, "call", counter.call)
        monkeypatch.setattr(Channel, "acall", counter.acall)
        return counter

    return make


@pytest.mark.parametrize(("count", "size"), [(1, 32), (32, 32), (33, 32), (100, 7), (5, 1)])
def test_order_is_kept_over_batches(counted: Any, embed: Embed, count: int, size: int) -> None:
    counter = counted()
    found = embed(QuantizedEmbeddings(normalize=False, batch_size=size), [str(n) for n in range(count)])
    assert [vector[0] for vector in found] == list(range(count))
    assert sorted(len(request["input"]) for request in counter.requests) == sorted(
        min(size, count - start) for start in range(0, count, size)
    )


@pytest.mark.parametrize(("slots", "concurrency", "most"), [(3, None, 3), (1, None, 1), (None, 2, 2), (None, None, 4)])
def test_as_many_requests_are_under_way_as_the_engine_has_slots(
    counted: Any, embed: Embed, slots: int | None, concurrency: int | None, most: int
) -> None:
    counter = counted(slots=slots, together=most)
    embed(QuantizedEmbeddings(batch_size=1, concurrency=concurrency), [str(n) for n in range(12)])
    assert counter.most == most
    assert counter.at_once == 0


def test_a_failure_ends_the_batches_that_have_not_begun(counted: Any, embed: Embed) -> None:
    counter = counted(slots=1, limit=10)
    with pytest.raises(PromptTooLongError):
        embed(QuantizedEmbeddings(batch_size=1), ["x" * 40, *map(str, range(50))])
    assert len(counter.requests) < 10
    assert counter.at_once == 0


def test_the_text_that_is_too_long_is_named(counted: Any, embed: Embed) -> None:
    counter = counted(limit=16, tokenize=True)
    texts = ["a"] * 5 + ["x" * 14] + ["x" * 15]
    with pytest.raises(PromptTooLongError, match="Text 7 of 7 takes 17 tokens; the context has 16") as caught:
        embed(QuantizedEmbeddings(batch_size=4), texts)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (17, 16)
    assert "truncate=True" in caught.value.hint
    # Short texts need no look: no token is shorter than a byte.
    assert {request["content"] for request in counter.tokenized} == {"x" * 14, "x" * 15}


def test_truncating_keeps_the_mark_at_the_end_and_says_so_once(counted: Any, embed: Embed) -> None:
    counter = counted(limit=8, tokenize=True)
    model = QuantizedEmbeddings(truncate=True)
    with pytest.warns(QlangchainWarning, match="longer than 8 tokens are cut") as caught:
        assert len(embed(model, ["5", "abcdefghij"])) == 2
    assert len(caught) == 1
    assert counter.requests[-1]["input"] == ["5", [101, *map(ord, "abcdef"), 102]]
    embed(model, ["abcdefghij"])


def test_a_server_that_counts_otherwise_is_believed(counted: Any, embed: Embed) -> None:
    counter = counted(limit=8, tokenize=True)
    counter.limit = 8
    original = counter.answer

    def stubborn(path: str, body: Any) -> Any:
        if path == TOKENIZE:
            return {"tokens": [1, 2]}
        return original(path, body)

    counter.answer = stubborn
    with pytest.raises(PromptTooLongError):
        embed(QuantizedEmbeddings(truncate=True), ["abcdefghij"])


@pytest.mark.parametrize(
    ("tokens", "plain", "limit", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 2, [1, 2]),
        ([9, 1, 2, 3, 8], [1, 2, 3], 3, [9, 1, 8]),
        ([9, 1, 2, 3], [1, 2, 3], 2, [9, 1]),
        ([1, 2, 3, 8, 7], [1, 2, 3], 3, [1, 8, 7]),
        ([1, 2, 3, 8, 7], [1, 2, 3], 2, [1, 2]),
    ],
)
def test_marks_are_kept(tokens: list[int], plain: list[int], limit: int, expected: list[int]) -> None:
    assert embeddings._shortened(tokens, plain, limit) == expected


def test_a_llama_cpp_server_is_asked_for_the_length_that_is_wanted(counted: Any) -> None:
    counter = counted(raw_embeddings=True)
    QuantizedEmbeddings().embed_query("a")
    QuantizedEmbeddings(normalize=False).embed_query("a")
    assert [request["embd_normalize"] for request in counter.requests] == [2, -1]


# Arguments.


def test_arguments_are_checked() -> None:
    for wrong in ({"pooling": "max"}, {"pooling": "none"}, {"batch_size": 0}, {"temperature": 0}, {"hardware": "tpu"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            get_embeddings("demo", **wrong)
    with pytest.raises(ValueError, match="pooling= cannot be set for a server"):
        get_embeddings(endpoint="http://127.0.0.1:9", pooling="mean")


def test_the_object_is_a_value() -> None:
    model = get_embeddings("demo", pooling="cls", api_key="secret-key-1234")
    assert pickle.loads(pickle.dumps(model)) == model
    assert "secret" not in repr(model)
    assert get_embeddings(Path("demo")).model == "demo"


def test_the_plan_says_how_texts_are_pooled() -> None:
    plan = get_embeddings("demo", hardware="cpu").plan
    assert plan is not None and "Mean pooling, since the model names none." in plan.reasons
    plan = get_embeddings("demo", hardware="cpu", pooling="last").plan
    assert plan is not None and "Last pooling, as asked." in plan.reasons


def test_long_contexts_are_computed_by_fewer_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    def longer(original: Any) -> Any:
        def prepare(*given: Any, **named: Any) -> Any:
            prepared = original(*given, **named)
            options = replace(prepared.channel.options, context_length=8192, slots=8)
            return replace(prepared, channel=replace(prepared.channel, options=options))

        return prepare

    monkeypatch.setattr(pipeline, "prepare", longer(pipeline.prepare))
    prepared = get_embeddings("demo", hardware="cpu")._prepared()
    assert prepared.plan.slots == prepared.channel.options.slots == 2
    assert any("2 instead of 8 requests" in reason for reason in prepared.plan.reasons)
    assert get_embeddings("demo", hardware="cpu", concurrency=8)._prepared().channel.options.slots == 8


# Which pooling a model names.


def write_gguf(path: Path, pooling: int | None) -> Path:
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(1)
    writer.add_embedding_length(4)
    if pooling is not None:
        writer.add_uint32("bert.pooling_type", pooling)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("number", "expected"), [(None, None), (0, None), (1, "mean"), (2, "cls"), (3, "last")])
def test_a_gguf_file_names_its_pooling(tmp_path: Path, number: int | None, expected: str | None) -> None:
    assert gguf_pooling(write_gguf(tmp_path / "m.gguf", number)) == expected


def test_a_reranker_is_no_model_for_embeddings(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="reranker"):
        gguf_pooling(write_gguf(tmp_path / "m.gguf", 4))


def sentence_transformers(path: Path, config: Any, *, more: str | None = None) -> Path:
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    if more:
        kinds[f"3_{more}"] = more
    numbers = itertools.count()
    modules = [
        {"idx": next(numbers), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for place, kind in kinds.items()
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True, "word_embedding_dimension": 4}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_a_directory_of_sentence_transformers_names_its_pooling(tmp_path: Path, config: Any, expected: str) -> None:
    assert directory_pooling(sentence_transformers(tmp_path, config)) == expected


def test_other_directories_name_none(tmp_path: Path) -> None:
    assert directory_pooling(tmp_path) is None


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {},
    ],
)
def test_a_pooling_that_llama_cpp_has_not_is_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="one pooling of mean, cls, last") as caught:
        directory_pooling(sentence_transformers(tmp_path, config))
    assert "pooling=" in caught.value.hint


def test_layers_that_gguf_has_not_are_not_left_out_in_silence(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="Dense layer"):
        directory_pooling(sentence_transformers(tmp_path, {"pooling_mode_cls_token": True}, more="Dense"))


@pytest.mark.parametrize("config", ["{", "[]", "null", "\0"])
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, config: str) -> None:
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        directory_pooling(sentence_transformers(tmp_path, config))


def test_modules_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[7]")
    with pytest.raises(CorruptFileError, match=r"modules\.json"):
        directory_pooling(tmp_path)
