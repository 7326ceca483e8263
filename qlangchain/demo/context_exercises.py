"""Exercises in answering from a context: the sentence that answers is copied, or its absence is reported."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from qlangchain.demo.example import Example, assistant, system, user
from qlangchain.demo.questions import SYSTEMS, Pair, vary
from qlangchain.demo.words import PHRASES, Bank, invented

UNKNOWN = "The documents do not say."
UNKNOWN_ZH = "文档中没有提到。"

TEXTS: dict[str, Any] = PHRASES["context"]

Fact = tuple[str, list[str]]


def fact(bank: Bank, chinese: bool = False) -> Fact:
    """Return a made-up sentence and the questions that it answers."""
    rng = bank.rng
    if chinese:
        entity = bank.pick("zh_name") if rng.random() < 0.7 else invented(rng)
        words = {"e": entity, "v": bank.pick("zh_city"), "n": str(rng.randint(1, 99999)), "w": invented(rng)}
        sentence, asks = rng.choice(TEXTS["zh_relations"]).values()
    else:
        sentence, asks = rng.choice(TEXTS["relations"]).values()
        entity = bank.entity() if rng.random() < 0.8 else f"{invented(rng)} {invented(rng)}"
        words = {"e": entity, "v": bank.entity(), "n": str(rng.randint(1, 10 ** rng.randint(1, 4)))}
        kinds = {"t": "topic", "o": "object", "m": "material", "b": "verb", "p": "parameter"}
        words |= {key: bank.pick(kind) for key, kind in kinds.items()}
    return sentence.format(**words), [ask.format(**words) for ask in asks]


def scrambled(bank: Bank) -> Fact:
    """Return a sentence of unrelated words, so that only the words in common tell which sentence is asked for."""
    rng = bank.rng
    kinds = ["object", "topic", "material", "verb", "parameter", "name", "city", "subject"]
    words = [
        invented(rng) if rng.random() < 0.2 else bank.pick(rng.choice(kinds)).replace("_", " ")
        for _ in range(rng.randint(4, 9))
    ]
    glue = ["the", "a", "of", "with", "and", "in", "for", "is", "on", "", "", ""]
    text = " ".join(f"{rng.choice(glue)} {word}".strip() for word in words)
    start = rng.randrange(len(words) - 1)
    key = words[start] if rng.random() < 0.4 else f"{words[start]} and {words[start + 1]}"
    asks = [rng.choice(TEXTS["asks"]).format(key), f"what about {words[-1]} and {words[0]}"]
    return text[0].upper() + text[1:] + ".", asks


def corpus_fact(pairs: list[Pair], rng: Random) -> Fact:
    """Return an answer of the corpus and some of its trained questions."""
    pair = rng.choice(pairs)
    return pair.answer, [vary(rng.choice(pair.train), pair.lang, rng)]


def joined(sentences: list[str], rng: Random, chinese: bool) -> str:
    """Lay sentences out as paragraphs, lines, a list or numbered documents."""
    style = rng.random()
    if style < 0.35:
        return ("" if chinese else " ").join(sentences)
    if style < 0.55:
        return "\n\n".join(sentences)
    if style < 0.7:
        return "\n".join(sentences)
    if style < 0.8:
        return "\n".join(f"- {sentence}" for sentence in sentences)
    if style < 0.9:
        return "\n\n".join(f"[{number}] {sentence}" for number, sentence in enumerate(sentences, 1))
    glue = "" if chinese else " "
    cut = rng.randint(1, len(sentences))
    return "\n\n".join(glue.join(part) for part in (sentences[:cut], sentences[cut:]) if part)


def shares_words(question: str, sentence: str) -> bool:
    """Say whether most of the long words of a question stand in a sentence: then it may be an answer."""
    words = set(re.findall(r"\w{4,}", question.lower()))
    return bool(words) and sum(word in sentence.lower() for word in words) > 0.5 * len(words)


def context_example(bank: Bank, pairs: list[Pair], long: bool = False, kind: str = "", unknown: float = 0.2) -> Example:
    """Ask about one sentence of a context of 2 to 10 sentences, or of 25 to 70 if `long`."""
    rng = bank.rng
    chinese = rng.random() < 0.12
    source = kind or rng.choices(["facts", "corpus", "scrambled", "mixed"], [0.5, 0.2, 0.15, 0.15])[0]
    own = [pair for pair in pairs if pair.lang == ("zh" if chinese else "en")] or pairs

    def one() -> Fact:
        choice = rng.choice(["facts", "corpus", "scrambled"]) if source == "mixed" else source
        if choice == "corpus":
            return corpus_fact(own, rng)
        return scrambled(bank) if choice == "scrambled" and not chinese else fact(bank, chinese)

    count = rng.randint(25, 70) if long else rng.randint(1, 10) if rng.random() < 0.9 else 1
    facts: dict[str, list[str]] = dict(one() for _ in range(count if source != "corpus" else max(1, count // 2)))
    sentences = list(facts)
    rng.shuffle(sentences)
    wanted = rng.choice(sentences)
    question = rng.choice(facts[wanted])
    answer = wanted
    clashes = [other for other in sentences if other != wanted and question in facts[other]]
    sentences = [sentence for sentence in sentences if sentence not in clashes]
    if rng.random() < unknown:
        # The sentence that answers is left out; its near neighbours stay.
        sentences = [sentence for sentence in sentences if sentence != wanted] or [fact(bank, chinese)[0]]
        if not any(shares_words(question, sentence) for sentence in sentences):
            answer = UNKNOWN_ZH if chinese else UNKNOWN
        else:
            sentences.insert(rng.randint(0, len(sentences)), wanted)
    context = joined(sentences, rng, chinese)
    if not chinese and rng.random() < 0.25:
        messages = [system(rng.choice(TEXTS["system_layouts"]).format(c=context)), user(question)]
    else:
        messages = [system(rng.choice(SYSTEMS))] if rng.random() < 0.2 else []
        messages.append(user(rng.choice(TEXTS["zh_layouts" if chinese else "layouts"]).format(c=context, q=question)))
    family = "unanswerable" if answer in (UNKNOWN, UNKNOWN_ZH) else "context"
    return Example(family, [*messages, assistant(answer)])
