"""Embeddings on the real engine with the demo model: one vector per text, the right one, alone and among others."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.exceptions import ContextOverflowError
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from real.test_llama_server import binary  # noqa: F401  (a fixture)

from qlangchain import QuantizedEmbeddings, get_embeddings, pipeline
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.errors import EngineError, EngineFailedError, EngineStartError, PromptTooLongError, QlangchainWarning
from qlangchain.models import base, embeddings
from qlangchain.runtimes import pool
from qlangchain.runtimes.client import Client
from qlangchain.runtimes.llamacpp import LlamaCpp
from qlangchain.types import EngineOptions

# Of many lengths, so that a slice which is lost or belongs to another text shows.
TEXTS = [f"{number} " + "quantization of weights " * (number * 7 % 23) for number in range(24)]
CONTEXT = 256
SAME = 0.9995  # cosine; quantized weights and batches of other sizes round to about 0.999997


class TestStandard(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return QuantizedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "demo", "hardware": "cpu"}


@pytest.fixture(scope="module")
def model() -> QuantizedEmbeddings:
    return get_embeddings("demo", hardware="cpu")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_told", set())
    # Two threads on so small a model mostly wait for each other, and for long where the cores are busy.
    monkeypatch.setenv("QLANGCHAIN_THREADS", "1")
    embeddings._prove.cache_clear()


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True)) / (math.hypot(*left) * math.hypot(*right))


def engine(model: QuantizedEmbeddings) -> LlamaCpp:
    channel = model._channel()
    found = pool.shared().engine(channel.runtime, channel.artifact, channel.options)
    assert isinstance(found, LlamaCpp)
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_text_has_the_same_vector_alone_and_among_others(pooling: Any) -> None:
    model = get_embeddings("demo", hardware="cpu", pooling=pooling, batch_size=16)
    alone = [model.embed_query(text) for text in TEXTS]
    together = model.embed_documents(TEXTS)
    assert len(together) == len(TEXTS)
    assert min(map(cosine, alone, together)) > SAME
    assert min(map(cosine, alone, asyncio.run(model.aembed_documents(TEXTS)))) > SAME
    if pooling != "cls":  # most texts begin with a token of their own, but not all
        assert max(cosine(alone[0], other) for other in alone[1:]) < 0.99999


def test_vectors_have_the_length_that_was_asked_for(model: QuantizedEmbeddings) -> None:
    one = model.embed_query(TEXTS[3])
    as_it_is = get_embeddings("demo", hardware="cpu", normalize=False).embed_query(TEXTS[3])
    assert math.hypot(*one) == pytest.approx(1, abs=1e-6)
    assert not 0.99 < math.hypot(*as_it_is) < 1.01
    assert cosine(one, as_it_is) > SAME


def test_the_edges(model: QuantizedEmbeddings) -> None:
    assert model.embed_documents([]) == []
    with pytest.warns(QlangchainWarning, match="single space"):
        empty, space, null = model.embed_documents(["", " ", "\0"])
    assert cosine(empty, space) > SAME
    assert len(null) == len(empty)


def test_vectors_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_DIRECTORY)
    reference = transformers.AutoModel.from_pretrained(DEMO_DIRECTORY, dtype=torch.float32).eval()
    texts = ["What is GPTQ?", "什么是量化？", "A group of weights shares one scale. " * 20, "x"]
    expected: dict[Any, list[list[float]]] = {"mean": [], "cls": [], "last": []}
    for text in texts:
        with torch.no_grad():
            hidden = reference(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        for pooling, vector in {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}.items():
            expected[pooling].append(vector.tolist())
    for pooling, vectors in expected.items():
        found = get_embeddings("demo", hardware="cpu", format="F16", pooling=pooling).embed_documents(texts)
        assert min(map(cosine, found, vectors)) > 0.999, pooling


def test_a_text_as_long_as_the_context_fits_and_one_more_token_does_not(model: QuantizedEmbeddings) -> None:
    arguments: dict[str, Any] = {"hardware": "cpu", "context_length": CONTEXT, "concurrency": 2}
    small, cutting = get_embeddings("demo", **arguments), get_embeddings("demo", truncate=True, **arguments)
    client = Client(engine(small).start())

    def tokens(text: str) -> int:
        return len(client.call("POST", "/tokenize", {"content": text, "add_special": True})["tokens"])

    word = " quantization"
    fitting = word * (CONTEXT - tokens(word) + 1)
    assert tokens(fitting) == CONTEXT == tokens(fitting + word) - 1
    whole = small.embed_query(fitting)
    assert cosine(whole, model.embed_query(fitting)) > SAME  # a longer context changes nothing
    numbers = f"Text 2 of 3 takes {CONTEXT + 1} tokens; the context has {CONTEXT}"
    with pytest.raises(PromptTooLongError, match=numbers) as caught:
        small.embed_documents(["a", fitting + word, "b"])
    assert isinstance(caught.value, ContextOverflowError)
    assert not caught.value.is_retryable
    with pytest.warns(QlangchainWarning, match=f"longer than {CONTEXT} tokens are cut"):
        first, cut, last = cutting.embed_documents(["a", fitting + word * 50, "b"])
    assert cosine(cut, whole) > SAME
    assert cosine(first, small.embed_query("a")) > SAME
    assert cosine(last, small.embed_query("b")) > SAME
    assert cosine(asyncio.run(cutting.aembed_query(fitting + word)), whole) > SAME
    assert small.plan is not None and small.plan.context_length == CONTEXT


def test_an_engine_for_embeddings_is_not_the_one_that_generates(model: QuantizedEmbeddings) -> None:
    generating = pipeline.prepare("demo", pipeline.requirements(hardware="cpu")).channel
    mean, last = model._channel(), get_embeddings("demo", hardware="cpu", pooling="last")._channel()
    assert {channel.options.pooling for channel in (generating, mean, last) if channel.options} == {
        None,
        "mean",
        "last",
    }


def test_the_second_call_works_when_the_engine_was_killed_between_two(model: QuantizedEmbeddings) -> None:
    first = model.embed_query("Hello")
    pid = engine(model).supervisor.start(lambda _: None).engine_pid
    os.kill(pid, signal.SIGKILL)
    assert cosine(model.embed_query("Hello"), first) > SAME
    os.kill(engine(model).supervisor.start(lambda _: None).engine_pid, signal.SIGKILL)
    assert cosine(asyncio.run(model.aembed_query("Hello")), first) > SAME


def test_an_endpoint_that_is_llama_cpp_embeds_like_our_own(model: QuantizedEmbeddings) -> None:
    small = get_embeddings("demo", hardware="cpu", context_length=CONTEXT, concurrency=2)
    endpoint = engine(small).start()
    there = get_embeddings(endpoint=endpoint.base_url + "/v1", api_key=endpoint.api_key, truncate=True)
    assert min(map(cosine, there.embed_documents(TEXTS[:5]), model.embed_documents(TEXTS[:5]))) > SAME
    with pytest.warns(QlangchainWarning, match=f"{CONTEXT} tokens are cut"):
        assert len(there.embed_documents(["quantization " * 300])) == 1


@pytest.fixture
def careless() -> Iterator[str]:
    """A llama.cpp server as it starts by itself with several slots: each has a KV cache of its own."""
    import xllamacpp

    prepared = pipeline.prepare("demo", pipeline.requirements(hardware="cpu"))
    params = xllamacpp.CommonParams()
    params.model.path = str(prepared.artifact.path)
    params.n_ctx, params.n_parallel, params.n_batch, params.n_ubatch = 1024, 4, 256, 256
    params.embedding, params.kv_unified, params.fit_params = True, False, False
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.cpuparams.n_threads = 1
    params.api_keys = ["careless-key"]
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server


def test_a_server_that_mixes_texts_up_is_refused(careless: str) -> None:
    with pytest.raises(EngineError, match="another vector when other texts come") as caught:
        get_embeddings(endpoint=careless, api_key="careless-key").embed_documents(["a", "b c"])
    assert "--kv-unified" in caught.value.hint


def test_a_server_that_generates_says_that_it_does_not_embed() -> None:
    channel = pipeline.prepare("demo", pipeline.requirements(hardware="cpu")).channel
    endpoint = channel.start()
    with pytest.raises(EngineFailedError, match="HTTP 501"):
        get_embeddings(endpoint=endpoint.base_url, api_key=endpoint.api_key).embed_query("a")


def test_an_engine_that_cannot_pool_that_way_says_so_at_its_start() -> None:
    prepared = pipeline.prepare("demo", pipeline.requirements(hardware="cpu"))
    broken = LlamaCpp(prepared.artifact, EngineOptions(context_length=64, pooling="none"))
    with pytest.raises(EngineStartError, match="does not embed"):
        broken.start()


def test_a_binary_embeds_like_the_wheel(
    model: QuantizedEmbeddings,
    binary: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = model.embed_documents(TEXTS[:8])
    artifact = model._channel().artifact
    monkeypatch.setenv("QLANGCHAIN_LLAMA_SERVER", str(binary))
    assert artifact is not None
    native = LlamaCpp(artifact, EngineOptions(context_length=512, slots=4, pooling="mean"))
    try:
        endpoint = native.start()
        there = get_embeddings(endpoint=endpoint.base_url, api_key=endpoint.api_key)
        assert min(map(cosine, there.embed_documents(TEXTS[:8]), expected)) > SAME
    finally:
        native.stop()


def test_a_gguf_file_s_own_pooling_is_taken_and_can_be_overruled(tmp_path: Path) -> None:
    import gguf

    source = pipeline.prepare("demo", pipeline.requirements(hardware="cpu", format="Q8_0")).artifact.path
    target = tmp_path / "last.gguf"
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            sub = field.types[1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    writer.add_pooling_type(gguf.PoolingType.LAST)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    demo = {
        p: get_embeddings("demo", hardware="cpu", format="Q8_0", pooling=p).embed_query(TEXTS[5])
        for p in ("mean", "last")
    }
    assert cosine(demo["mean"], demo["last"]) < 0.99
    assert cosine(get_embeddings(target, hardware="cpu").embed_query(TEXTS[5]), demo["last"]) > SAME
    assert cosine(get_embeddings(target, hardware="cpu", pooling="mean").embed_query(TEXTS[5]), demo["mean"]) > SAME


def test_a_vector_store_finds_the_text_itself(model: QuantizedEmbeddings) -> None:
    store = InMemoryVectorStore(model)
    store.add_texts(TEXTS)
    assert [store.similarity_search(text, k=1)[0].page_content for text in TEXTS[:10]] == TEXTS[:10]


def test_preload_starts_the_engine_at_once() -> None:
    model = get_embeddings("demo", hardware="cpu", context_length=333, concurrency=1, preload=True)
    channel = model._channel()
    assert (channel.runtime, channel.artifact.digest, channel.options) in pool.shared()._entries
