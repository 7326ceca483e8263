"""Question-answer pairs from the corpus, and the ways in which a question is varied for training."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from qlangchain.demo.example import Example, Message, assistant, system, user

CORPUS = Path(__file__).parent / "corpus"
SYSTEMS = [
    "You are a helpful assistant.", "You are a helpful AI assistant. Answer briefly.", "Answer in one or two sentences.",
    "You are an expert in quantized language models.", "You are a concise assistant.", "Be brief and precise.",
    "You answer questions about running language models locally.", "You are a friendly teacher.",
    "You are a chatbot that helps developers.", "You are the documentation assistant of a Python package.",
    "You are a helpful assistant that answers in the language of the question.", "你是一个有帮助的助手。",
]  # fmt: skip
PREFIXES = ["Please: ", "Hi, ", "Hello, ", "Hello! ", "Quick question: ", "Question: ", "Hey, ", "One more question: ",
            "Good morning, ", "I have a question. ", "Excuse me, ", "Sorry, ", "Ok, "]  # fmt: skip
SUFFIXES = [
    " Thanks!",
    " Thank you.",
    " thanks",
    " please",
    " Please be brief.",
    " Please explain.",
    " Answer briefly.",
]
ZH_PREFIXES = ["请问，", "请问", "你好，", "您好，", "想问一下，", "问一下：", "我想知道，", "麻烦问一下，"]
ZH_SUFFIXES = ["谢谢。", "谢谢！", "请简单说明。", "请解释一下。"]

# What may stand in for what without changing the sense. Only whole openings are exchanged.
OPENINGS = [
    ["what is ", "what's ", "explain ", "please explain ", "tell me about ", "describe ", "define ", "what does {} mean",
     "what do you know about ", "i want to know what {} is", "could you explain ", "can you explain what {} is",
     "please explain what {} is", "please explain what {} means", "i wonder what {} is", "give me a short explanation of ",
     "could you tell me what {} is", "what exactly is ", "do you know what {} is", "{} meaning", "{} explained",
     "can you tell me about ", "i would like to understand ", "help me understand ", "who can tell me what {} is",
     "could you explain what {} means", "definition of ", "in short, what is ", "what is meant by "],
    ["how do i ", "how can i ", "how to ", "how would i ", "what is the way to ", "tell me how to ", "show me how to ",
     "please explain how to ", "could you tell me how to ", "i want to know how to ", "can you show me how to ",
     "what do i do to ", "explain how to ", "i would like to know how to ", "is there a way to ", "i want to ",
     "i need to ", "what steps do i take to ", "how does one ", "please tell me how to ", "i wonder how to "],
    ["why ", "tell me why ", "please explain why ", "could you tell me why ", "i wonder why ", "what is the reason why ",
     "can you explain why ", "do you know why ", "i want to know why "],
    ["should i ", "is it good to ", "do i have to ", "would you ", "is it wise to ", "tell me whether i should ",
     "i wonder whether i should ", "please tell me whether i should "],
    ["which ", "tell me which ", "please tell me which ", "could you tell me which ", "i wonder which ",
     "do you know which ", "i want to know which ", "can you say which "],
    ["how much ", "tell me how much ", "could you tell me how much ", "i wonder how much ", "please tell me how much "],
    ["can i ", "is it possible to ", "am i able to ", "could i ", "tell me whether i can ", "i wonder whether i can ",
     "please tell me whether i can ", "is there a way to "],
    ["什么是", "请解释一下", "解释", "介绍一下", "请介绍一下", "说说", "{}是什么", "{}是什么意思", "请问什么是", "我想了解",
     "{}是指什么", "讲一讲", "能解释一下{}吗", "请告诉我{}是什么", "请说明什么是", "简单介绍一下"],
    ["怎么", "如何", "怎样", "请问怎么", "请告诉我如何", "我该怎么", "应该怎么", "能不能告诉我怎么", "请说明如何"],
    ["为什么", "为何", "请问为什么", "请解释为什么", "能说说为什么", "我想知道为什么", "请告诉我为什么"],
]  # fmt: skip
FILLER = "a an the i me my to of for please could you can tell want know is it do does so just about"
FILLERS = frozenset(FILLER.split())


@dataclass(frozen=True)
class Pair:
    """One fact of the corpus: an answer, ten trained phrasings of its question and two that are never trained."""

    id: str
    lang: str
    answer: str
    train: list[str]
    held_out: list[str]


def load_pairs(directory: Path = CORPUS) -> list[Pair]:
    """Read every pair of the corpus, in the order of file names and lines."""
    lines = [
        line for path in sorted(directory.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()
    ]
    return [Pair(**json.loads(line)) for line in lines if line.strip()]


def reopen(text: str, rng: Random) -> str:
    """Exchange the opening of a question for another of the same sense, if it has a known one."""
    bare = text.rstrip("?.!？。！ ")
    for family in OPENINGS:
        for opening in sorted(family, key=len, reverse=True):
            before, _, after = opening.partition("{}")
            low = bare.lower()
            if low.startswith(before) and low.endswith(after) and len(bare) > len(before) + len(after):
                rest = bare[len(before) : len(bare) - len(after)]
                other = rng.choice(family)
                filled = other.replace("{}", rest) if "{}" in other else other + rest
                return filled[0].upper() + filled[1:] if rng.random() < 0.6 else filled
    return text


def _worn(text: str, rng: Random) -> str:
    """Drop some words, most of them filler, and now and then exchange two letters."""
    words = text.split(" ")
    kept = [w for w in words if rng.random() > (0.3 if w.lower() in FILLERS else 0.07)]
    if len(kept) < 2:
        return text
    if rng.random() < 0.25:
        place = rng.randrange(len(kept))
        word = kept[place]
        if len(word) > 4:
            cut = rng.randrange(1, len(word) - 2)
            kept[place] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    if rng.random() < 0.15:
        place = rng.randrange(len(kept) - 1)
        kept[place], kept[place + 1] = kept[place + 1], kept[place]
    return " ".join(kept)


def _worn_chinese(text: str, rng: Random) -> str:
    """Drop a character here and there."""
    kept = "".join(c for c in text if rng.random() > (0.25 if c in "的了吗呢请一下" else 0.05))
    return kept if len(kept) > 2 else text


def vary(text: str, lang: str, rng: Random, plain: float = 0.25) -> str:
    """Return a question in another dress; with probability `plain` it stays as written."""
    if rng.random() < plain:
        return text
    if rng.random() < 0.45:
        text = reopen(text, rng)
    if rng.random() < 0.4:
        text = _worn_chinese(text, rng) if lang == "zh" else _worn(text, rng)
    if rng.random() < 0.3:
        text = text.lower() if rng.random() < 0.5 else text[0].lower() + text[1:]
    if rng.random() < 0.3:
        text = text.rstrip("?.!？。！")
    elif text[-1].isalnum() and rng.random() < 0.3:
        text += rng.choice("？。" if lang == "zh" else "?.!")
    prefixes, suffixes = (ZH_PREFIXES, ZH_SUFFIXES) if lang == "zh" else (PREFIXES, SUFFIXES)
    if rng.random() < 0.15:
        text = rng.choice(prefixes) + text
    if rng.random() < 0.1:
        text += rng.choice(suffixes)
    return re.sub(r"\s+", " ", text).strip()


def question_example(pairs: list[Pair], pair: Pair, rng: Random) -> Example:
    """Ask a trained phrasing of a pair, often under a system prompt, sometimes after another pair."""
    messages: list[Message] = [system(rng.choice(SYSTEMS))] if rng.random() < 0.4 else []
    if rng.random() < 0.08:
        earlier = rng.choice(pairs)
        messages += [user(vary(rng.choice(earlier.train), earlier.lang, rng)), assistant(earlier.answer)]
    messages += [user(vary(rng.choice(pair.train), pair.lang, rng)), assistant(pair.answer)]
    return Example("question", messages, id=pair.id)


def plain_example(pair: Pair, phrasing: str, kind: str) -> Example:
    """Ask a phrasing just as it is written, for measuring."""
    return Example(kind, [user(phrasing), assistant(pair.answer)], id=pair.id)
