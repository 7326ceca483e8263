"""The shared chains with scripted models: what is cited, what is cut, and how often a model is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda

from qlangchain import QuantizedLLM, get_chat_model, get_llm
from qlangchain.chains import UNKNOWN, answer_from, cite, map_reduce, pieces, words
from qlangchain.errors import InvalidInputError
from qlangchain.runtimes.scripted import Request, Scripted

DOCUMENTS = [
    Document("Otto lives in Rome. He sells blue kettles.", metadata={"source": "people.txt", "chunk": 1}),
    Document("The pump weighs 12 kilograms.", metadata={"source": "manual.pdf", "chunk": 3}),
    Document("保修期为两年。电池不在保修范围内。", metadata={"source": "zh.md", "chunk": 2}),
]
SUMMARIZE = PromptTemplate.from_template("Summarize:\n{text}")


def retriever(documents: list[Document]) -> Runnable[str, list[Document]]:
    return RunnableLambda(lambda _: documents)


def served(script: Scripted) -> QuantizedLLM:
    return get_llm(endpoint=script.url, api_key=script.api_key)


def count_words(text: str) -> int:
    return len(text.split())


def bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize(
    ("answer", "sources"),
    [
        ("The pump weighs 12 kilograms.", ["manual.pdf"]),
        ("Otto lives in Rome, and the rest is invented by somebody.", []),
        ("He sells kettles.", ["people.txt"]),
        ("Emma lives in Rome.", ["people.txt"]),  # a capital at the beginning may be any word
        ("He, Emma, lives in Rome.", []),
        ("The pump weighs 13 kilograms.", []),
        ("PUMP13 weighs 12 kilograms.", []),
        ("The pump weighs 12 kilograms. Otto lives in Rome.", ["manual.pdf", "people.txt"]),
        ("Otto lives in Rome.\nHe sells blue kettles.", ["people.txt"]),
        ("电池不在保修范围内。", ["zh.md"]),
        ("价格是三百元。", []),
        ("Emma was born in 1931 near Lisbon.", []),
        (UNKNOWN, []),
        ("", []),
        ("...", []),
    ],
)
def test_a_sentence_is_cited_where_its_words_stand(answer: str, sources: list[str]) -> None:
    assert [citation.source for citation in cite(answer, DOCUMENTS)] == sources


def test_a_name_of_the_question_must_stand_in_the_document() -> None:
    assert cite("Emma lives in Rome.", DOCUMENTS, "Where does Emma live?") == ()
    assert cite("Otto lives in Rome.", DOCUMENTS, "Where does Otto live?") != ()
    assert cite("He lives in Rome.", DOCUMENTS, "Where does Otto Berg live?") != ()  # only what the answer says


def test_a_citation_says_where() -> None:
    (citation,) = cite("The pump weighs 12 kilograms.", DOCUMENTS)
    assert (citation.source, citation.chunk, citation.text) == ("manual.pdf", 3, DOCUMENTS[1].page_content)
    assert cite("Some words.", []) == ()
    (bare_citation,) = cite("No metadata.", [Document("no metadata")])
    assert (bare_citation.source, bare_citation.chunk) == ("", 1)


def test_words_are_the_same_in_any_case_and_script() -> None:
    assert words("The Q4_0 file, 4.5 bits!") == ["the", "q4", "0", "file", "4", "5", "bits"]
    assert words("GPTQ 量化") == ["gptq", "量", "化"]


@pytest.mark.parametrize("kind", [get_llm, get_chat_model])
async def test_an_answer_comes_with_its_documents(kind: Any) -> None:
    with Scripted(["Otto lives in Rome."] * 2) as script:
        chain = answer_from(retriever(DOCUMENTS), kind(endpoint=script.url, api_key=script.api_key))
        for answer in (chain.invoke("Where does Otto live?"), await chain.ainvoke("Where does Otto live?")):
            assert answer.text == answer.said == "Otto lives in Rome."
            assert [(citation.source, citation.chunk) for citation in answer.citations] == [("people.txt", 1)]
        assert all(document.page_content in script.requests[0].text for document in DOCUMENTS)
        assert "Where does Otto live?" in script.requests[0].text


@pytest.mark.parametrize("said", ["Otto was a famous painter of the last century.", "I don't know.", UNKNOWN])
def test_what_no_document_supports_is_not_answered(said: str) -> None:
    with Scripted([said]) as script:
        answer = answer_from(retriever(DOCUMENTS), served(script)).invoke("Who was Otto?")
    assert (answer.text, answer.citations, answer.said) == (UNKNOWN, (), said)


def test_without_documents_nothing_is_answered() -> None:
    with Scripted(["Rome."]) as script:
        assert answer_from(retriever([]), served(script)).invoke("Where?").text == UNKNOWN


def test_the_worst_documents_are_left_out_where_the_context_is_short() -> None:
    many = [Document(f"Number {n}: " + "some words to fill the page. " * 8) for n in range(12)]
    with Scripted(["Number 0."] * 2) as script:
        model = served(script)
        answer_from(retriever(many), model).invoke("Which?")
        answer_from(retriever(many), model, context_length=600).invoke("Which?")
        whole, short = (request.text for request in script.requests)
        assert "Number 11:" in whole
        kept = [n for n in range(12) if f"Number {n}:" in short]
        assert kept == list(range(len(kept)))
        assert 1 < len(kept) < 12
        assert model.get_num_tokens(short) <= 450


@given(st.text(alphabet="ab c.。\n", max_size=400), st.integers(3, 30))
def test_pieces_fit_and_lose_nothing(text: str, tokens: int) -> None:
    found = list(pieces(text, tokens, lambda piece: len(piece.encode())))
    assert all(0 < len(piece.encode()) <= tokens for piece in found)
    assert bare("".join(found)) == bare(text)


def test_pieces_end_where_paragraphs_and_sentences_do() -> None:
    paragraph = "One sentence of six words here. " * 5
    found = list(pieces("\n\n".join([paragraph.strip()] * 6), 40, count_words))
    assert all(piece.endswith("here.") for piece in found)
    assert max(count_words(piece) for piece in found) > 20


def test_a_long_text_is_counted_a_few_times_only() -> None:
    asked: list[int] = []

    def count(text: str) -> int:
        asked.append(len(text))
        return count_words(text)

    found = list(pieces("some words to count. " * 5000, 500, count))
    assert len(found) > 30
    assert len(asked) < 3 * len(found)


def first_sentence(request: Request) -> str:
    return request.text.removeprefix("Summarize:\n").partition(".")[0] + "."


@pytest.fixture
def summarizer() -> Iterator[Scripted]:
    with Scripted(first_sentence) as script:
        yield script


async def test_a_text_is_summarized_in_rounds_that_fit(summarizer: Scripted) -> None:
    model = served(summarizer)
    chain = map_reduce(model, SUMMARIZE, context_length=400, summary_tokens=40)
    text = "\n\n".join(f"Paragraph {n} begins. " + "It goes on with some more words. " * 10 for n in range(40))
    assert chain.invoke(text) == "Paragraph 0 begins."
    asked = len(summarizer.requests)
    assert asked > 20
    assert all(model.get_num_tokens(request.text) <= 360 for request in summarizer.requests)
    assert all(request.body["max_tokens"] == 40 for request in summarizer.requests)
    assert await chain.ainvoke(text) == "Paragraph 0 begins."
    assert len(summarizer.requests) == 2 * asked


def test_a_short_text_is_summarized_by_one_call(summarizer: Scripted) -> None:
    chain = map_reduce(served(summarizer), SUMMARIZE, context_length=400, summary_tokens=40)
    assert chain.invoke("Only this. And that.") == "Only this."
    assert len(summarizer.requests) == 1


def test_pieces_that_say_nothing_of_it_add_nothing() -> None:
    def brain(request: Request) -> str:
        return "The pump weighs 12 kilograms." if "pump" in request.text else UNKNOWN

    text = "Nothing to see here. " * 200 + "The pump is heavy. " + "Nothing to see here. " * 200
    with Scripted(brain) as script:
        chain = map_reduce(served(script), SUMMARIZE, context_length=400, summary_tokens=40)
        assert chain.invoke(text) == "The pump weighs 12 kilograms."
        assert chain.invoke("Nothing to see here. " * 200) == UNKNOWN


def test_a_summary_that_the_limit_cuts_ends_with_a_sentence() -> None:
    with Scripted(["One. Two. And thr", "No end at all"]) as script:
        chain = map_reduce(served(script), SUMMARIZE, context_length=400, summary_tokens=40)
        assert chain.invoke("Some text.") == "One. Two."
        assert chain.invoke("Some text.") == "No end at all"


def test_what_cannot_be_summarized_is_refused(summarizer: Scripted) -> None:
    model = served(summarizer)
    with pytest.raises(InvalidInputError, match="no text"):
        map_reduce(model, SUMMARIZE, context_length=400, summary_tokens=40).invoke(" \n ")
    with pytest.raises(InvalidInputError, match="no room"):
        map_reduce(model, SUMMARIZE, context_length=400, summary_tokens=100)
    assert not summarizer.requests
