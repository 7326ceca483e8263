"""Composed Runnables that the recipes share: answering from documents with citations, and map-reduce over a long text.

They take any LangChain model; nothing here knows which one answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.language_models import BaseLanguageModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import BasePromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnablePassthrough

from qlangchain.errors import InvalidInputError

UNKNOWN: Final = "The documents do not say."
ANSWER: Final = PromptTemplate.from_template(
    "Answer the following question based only on the provided context:\n\n"
    "<context>\n{context}\n</context>\n\nQuestion: {question}"
)
# A sentence rests on a document that holds more than this share of its words: a copied sentence has all of them, one
# told in other words most, and an invented one hardly more than the words that every text has.
SUPPORT: Final = 0.5
_TEMPLATE_TOKENS: Final = 32  # what a chat template may add around a prompt
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_WORD: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
_ENDS: Final = ("\n\n", "\n", ". ", "。", " ")  # where a text is best cut, best first

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a sentence of an answer stands: the file, the number of the chunk in it (from 1), and the chunk itself."""

    source: str
    chunk: int
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with the documents that it rests on.

    Without citations `text` is UNKNOWN: no document supports what the model said, which is kept in `said`.
    """

    text: str
    citations: tuple[Citation, ...]
    said: str


def answer_from(
    retriever: Runnable[str, list[Document]], model: BaseLanguageModel[Any], *, context_length: int | None = None
) -> Runnable[str, Answer]:
    """Return a chain from a question to an `Answer` out of the retriever's documents.

    Args:
        retriever: gives documents, best first; their metadata has `source` and `chunk`.
        model: text or chat model.
        context_length: tokens of prompt and answer together; the worst documents are left out until three quarters
            of it hold the prompt. None sends them all.

    """

    def fitted(given: dict[str, Any]) -> dict[str, Any]:
        documents = list(given["documents"])
        while True:
            found = {**given, "documents": documents, "context": "\n\n".join(d.page_content for d in documents)}
            if context_length is None or len(documents) < 2:
                return found
            prompt = ANSWER.format(context=found["context"], question=given["question"])
            if model.get_num_tokens(prompt) + _TEMPLATE_TOKENS <= context_length * 3 // 4:
                return found
            documents.pop()

    def cited(given: dict[str, Any]) -> Answer:
        citations = cite(given["said"], given["documents"], given["question"])
        return Answer(given["said"].strip() if citations else UNKNOWN, citations, given["said"])

    return (
        {"documents": retriever, "question": RunnablePassthrough()}
        | RunnableLambda(fitted)
        | RunnablePassthrough.assign(said=ANSWER | model | StrOutputParser())
        | RunnableLambda(cited)
    )


def cite(answer: str, documents: Sequence[Document], question: str = "") -> tuple[Citation, ...]:
    """Return where the sentences of an answer stand in the documents, in the answer's order, each document once.

    A citation is checked by words, not claimed by the model: a document supports a sentence where it holds most of
    its words, and all of its names and numbers. What is a name in the question is one in the answer.
    """
    held = [set(words(document.page_content)) for document in documents]
    found: dict[Citation, None] = {}
    for sentence in _SENTENCE.split(answer):
        said = set(words(sentence)) if sentence.strip() != UNKNOWN else set()
        needed = said & (_names(sentence) | _names(question))
        shares = [len(said & own) / len(said) if said and needed <= own else 0 for own in held]
        best = max(range(len(shares)), key=lambda place: shares[place], default=0)
        if shares and shares[best] > SUPPORT:
            document = documents[best]
            about = document.metadata
            found[Citation(about.get("source", ""), about.get("chunk", 1), document.page_content)] = None
    return tuple(found)


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; of scripts without blanks, each character."""
    return _WORD.findall(text.lower())


def _names(sentence: str) -> set[str]:
    """The words with digits or capitals, in lower case; a capital that only begins the sentence does not count."""
    found = enumerate(_WORD.findall(sentence))
    return {
        word.lower()
        for place, word in found
        if any(letter.isdigit() for letter in word) or word[1:] != word[1:].lower() or (place and word != word.lower())
    }


def map_reduce(
    model: BaseLanguageModel[Any], prompt: BasePromptTemplate[str], *, context_length: int, summary_tokens: int = 256
) -> Runnable[str, str]:
    """Return a chain from a text of any length to its summary.

    The text is cut into pieces that fit the context, all pieces are summarized as one batch, and so are their
    summaries, until one is left. A piece of which the model says UNKNOWN adds nothing.

    Args:
        model: text or chat model; its own tokenizer counts.
        prompt: asks for the summary of {text}.
        context_length: tokens of prompt and answer together.
        summary_tokens: the most that one summary takes.

    Raises InvalidInputError where the context has no room for three summaries.
    """
    room = context_length - summary_tokens - _TEMPLATE_TOKENS - model.get_num_tokens(prompt.format(text=""))
    if room < 3 * summary_tokens:
        raise InvalidInputError(
            f"A context of {context_length} tokens has no room for several summaries of {summary_tokens}.",
            hint="Pass a smaller summary_tokens=, or a larger context_length= where the model allows it.",
        )
    step = prompt | model.bind(max_tokens=summary_tokens) | StrOutputParser() | RunnableLambda(_whole)

    def run(text: str, config: RunnableConfig) -> str:
        parts = list(pieces(text, room, model.get_num_tokens))
        if not parts:
            raise InvalidInputError("There is no text to summarize.")
        while True:
            summaries = step.batch([{"text": part} for part in parts], config)
            if len(parts) == 1:
                return summaries[0]
            # Pieces that say the same give the same summary; once is enough.
            told = [summary for summary in dict.fromkeys(summaries) if summary not in ("", UNKNOWN)]
            if len(told) < 2:
                return told[0] if told else UNKNOWN
            parts = _packed(told, room, model.get_num_tokens)

    return RunnableLambda(run)


def pieces(text: str, tokens: int, count: Count) -> Iterator[str]:
    """Cut a text into pieces of at most `tokens` tokens, at the ends of paragraphs, sentences or words.

    Nothing but blanks between pieces is left out. `count` is asked about once or twice per piece.
    """
    rest = text.strip()
    total = count(rest) if rest else 0
    if 0 < total <= tokens:
        yield rest
        return
    density = total / max(1, len(rest))  # tokens per character
    while rest:
        size = max(1, int(tokens / density))
        while count(piece := _cut(rest, size)) > tokens and len(piece) > 1:
            size = len(piece) * 9 // 10
        yield piece.rstrip()
        rest = rest[len(piece) :].lstrip()


def _cut(text: str, size: int) -> str:
    """The first `size` characters, or fewer, so that they end where the text has an end."""
    if len(text) <= size:
        return text
    window = text[:size]
    for end in _ENDS:
        place = window.rfind(end)
        if place >= size // 2:
            return window[: place + len(end)]
    return window


def _packed(texts: list[str], tokens: int, count: Count) -> list[str]:
    """Join neighbours as long as they fit; at least two always do, so that every round has half as many or fewer."""
    groups = [texts[:2]]
    for text in texts[2:]:
        fits = len(groups[-1]) < 2 or count("\n\n".join([*groups[-1], text])) <= tokens
        groups = [*groups[:-1], [*groups[-1], text]] if fits else [*groups, [text]]
    return ["\n\n".join(group) for group in groups]


def _whole(summary: str) -> str:
    """The summary up to its last full sentence, where the limit of tokens has cut it in the middle of one."""
    ended = re.match(r"(?s).*[.!?。！？]", summary)
    return (ended[0] if ended else summary).strip()
