"""Exercises in answering from a context: the sentence that answers is copied, or its absence is reported."""

from __future__ import annotations

import re
from random import Random

from qlangchain.demo.example import Example, assistant, system, user
from qlangchain.demo.questions import SYSTEMS, Pair, vary
from qlangchain.demo.words import Bank, invented

UNKNOWN = "The documents do not say."
UNKNOWN_ZH = "文档中没有提到。"

# A sentence about an entity {e} and a value {v}, and questions that it answers.
RELATIONS: list[tuple[str, list[str]]] = [
    ("The {t} of {e} is {v}.", ["What is the {t} of {e}?", "Tell me the {t} of {e}.", "what {t} does {e} have", "{e} {t}"]),
    ("{e} lives in {v}.", ["Where does {e} live?", "In which city does {e} live?", "Which place is the home of {e}?"]),
    ("{e} works as a {o} maker in {v}.", ["What does {e} work as?", "What is the job of {e}?", "What does {e} do for a living?"]),
    ("{e} was founded in {n} by {v}.", ["When was {e} founded?", "Who founded {e}?", "In which year was {e} founded?"]),
    ("The password for {e} is {v}.", ["What is the password for {e}?", "How do I get into {e}?", "Which password does {e} need?"]),
    ("{e} bought a {m} {o} for {n} euros.", ["What did {e} buy?", "How much did {e} pay?", "What does the {o} of {e} cost?"]),
    ("The {o} in room {n} belongs to {e}.", ["Who owns the {o} in room {n}?", "What belongs to {e}?", "Where is the {o} of {e}?"]),
    ("{e} is made of {m} and weighs {n} kilograms.", ["What is {e} made of?", "How much does {e} weigh?", "How heavy is {e}?"]),
    ("To {b} the {o}, press the {e} key and wait {n} seconds.", ["How do I {b} the {o}?", "How can I {b} the {o}?", "what to press to {b} the {o}"]),
    ("{e} supports up to {n} {o}s at the same time.", ["How many {o}s does {e} support?", "How many {o}s can {e} handle?"]),
    ("The default {p} of {e} is {n}.", ["What is the default {p} of {e}?", "Which {p} does {e} use by default?", "{e} default {p}"]),
    ("{e} was invented by {v} in {n}.", ["Who invented {e}?", "When was {e} invented?", "Who is the inventor of {e}?"]),
    ("The {o} shop on {e} street opens at {n}.", ["When does the {o} shop open?", "Where is the {o} shop?"]),
    ("{e} is the capital of {v}.", ["What is the capital of {v}?", "Which city is the capital of {v}?", "Which country has the capital {e}?"]),
    ("You can {b} every {o} with the command {e}.", ["Which command can {b} a {o}?", "How do I {b} every {o}?", "What does the command {e} do?"]),
    ("The meeting about {e} takes place in {v} on day {n}.", ["Where is the meeting about {e}?", "When is the meeting about {e}?"]),
    ("{e} prefers {m} to anything else.", ["What does {e} prefer?", "Which material does {e} like best?"]),
    ("Our {o} {e} costs {n} dollars and is made in {v}.", ["How much does {e} cost?", "What does the {o} {e} cost?", "Where is {e} made?"]),
]  # fmt: skip
RELATIONS_ZH: list[tuple[str, list[str]]] = [
    ("{e}的电话号码是 {n}。", ["{e}的电话号码是多少？", "怎么给{e}打电话？"]), ("{e}住在{v}。", ["{e}住在哪里？", "{e}住在哪个城市？"]),
    ("{e}今年 {n} 岁。", ["{e}今年多大？", "{e}几岁了？"]), ("{e}的密码是 {w}。", ["{e}的密码是什么？", "{e}用什么密码？"]),
    ("{e}在{v}开了一家书店。", ["{e}在哪里开了书店？", "{e}开了什么店？"]), ("{e}最喜欢的数字是 {n}。", ["{e}最喜欢什么数字？", "{e}喜欢的数字是多少？"]),
]  # fmt: skip
ASKS = [
    "What do the documents say about {}?",
    "What is said about {}?",
    "Tell me about {}.",
    "Where is {} mentioned?",
    "{}?",
]
LAYOUTS = [
    "Context:\n{c}\n\nQuestion: {q}", "Context:\n{c}\n\nQuestion: {q}\nAnswer:", "{c}\n\nQuestion: {q}", "Context: {c}\n\n{q}",
    "Use the following pieces of context to answer the question at the end. If you don't know the answer, just say that you "
    "don't know, don't try to make up an answer.\n\n{c}\n\nQuestion: {q}\nHelpful Answer:",
    "Answer the question based only on the following context:\n{c}\n\nQuestion: {q}",
    "Answer the question using only the documents below.\n\nDocuments:\n{c}\n\nQuestion: {q}",
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer the question. "
    "If you don't know the answer, just say that you don't know. Use three sentences maximum and keep the answer concise.\n"
    "Question: {q}\nContext: {c}\nAnswer:",
    "Answer the following question based only on the provided context:\n\n<context>\n{c}\n</context>\n\nQuestion: {q}",
]  # fmt: skip
LAYOUTS_ZH = [
    "上下文：\n{c}\n\n问题：{q}",
    "根据以下内容回答问题。\n\n{c}\n\n问题：{q}",
    "资料：\n{c}\n\n请只根据资料回答：{q}",
]
SYSTEM_LAYOUTS = [
    "Answer the user's question from this context.\n\n{c}", "Context:\n{c}", "Use the given context to answer the question. If you "
    "don't know the answer, say you don't know. Use three sentence maximum and keep the answer concise. Context: {c}",
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer the question. "
    "If you don't know the answer, say that you don't know.\n\n{c}",
]  # fmt: skip

Fact = tuple[str, list[str]]


def fact(bank: Bank, chinese: bool = False) -> Fact:
    """Return a made-up sentence and the questions that it answers."""
    rng = bank.rng
    if chinese:
        entity = bank.pick("zh_name") if rng.random() < 0.7 else invented(rng)
        words = {"e": entity, "v": bank.pick("zh_city"), "n": str(rng.randint(1, 99999)), "w": invented(rng)}
        sentence, asks = rng.choice(RELATIONS_ZH)
    else:
        sentence, asks = rng.choice(RELATIONS)
        entity = bank.entity() if rng.random() < 0.8 else f"{invented(rng)} {invented(rng)}"
        words = {"e": entity, "v": bank.entity(), "n": str(rng.randint(1, 10 ** rng.randint(1, 4))), "t": bank.pick("topic"),
                 "o": bank.pick("object"), "m": bank.pick("material"), "b": bank.pick("verb"), "p": bank.pick("parameter")}  # fmt: skip
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
    asks = [rng.choice(ASKS).format(key), f"what about {words[-1]} and {words[0]}"]
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
    words = {word for word in re.findall(r"\w{4,}", question.lower())}
    return bool(words) and sum(word in sentence.lower() for word in words) > 0.5 * len(words)


def context_example(
    bank: Bank, pairs: list[Pair], long: bool = False, kind: str = "", unknown: float = 0.2
) -> Example:
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
    facts: dict[str, list[str]] = dict(
        one() for _ in range(count if source != "corpus" else max(1, count // 2))
    )
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
        messages = [system(rng.choice(SYSTEM_LAYOUTS).format(c=context)), user(question)]
    else:
        messages = [system(rng.choice(SYSTEMS))] if rng.random() < 0.2 else []
        messages.append(user(rng.choice(LAYOUTS_ZH if chinese else LAYOUTS).format(c=context, q=question)))
    family = "unanswerable" if answer in (UNKNOWN, UNKNOWN_ZH) else "context"
    return Example(family, [*messages, assistant(answer)])
