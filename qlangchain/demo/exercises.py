"""The mix of exercises that the demo model trains on, and the fixed sets that it is measured on."""

from __future__ import annotations

from random import Random

from qlangchain.demo.context_exercises import context_example, fact
from qlangchain.demo.example import Example, assistant, user
from qlangchain.demo.questions import Pair, plain_example, question_example
from qlangchain.demo.tool_exercises import tool_example
from qlangchain.demo.tool_tasks import lookup
from qlangchain.demo.words import PHRASES, Bank

# Shares of the examples. Questions are short, so that they are fewer than half of the tokens.
SHARES = {"question": 0.5, "tools": 0.18, "context": 0.23, "repeat": 0.07, "off topic": 0.02}
LONG_CONTEXTS = 0.06

OFF_TOPIC = "chat-offtopic-knowledge"


def off_topic_example(bank: Bank, pairs: list[Pair]) -> Example:
    """Ask what only a tool or a context could answer when there is neither: the corpus has an answer for that."""
    pair = next(pair for pair in pairs if pair.id == OFF_TOPIC)
    question = bank.rng.choice(fact(bank)[1])
    while bank.rng.random() < 0.4:
        _, question, _, lang = lookup(bank)
        if lang == "en":
            break
    return Example("off topic", [user(question), assistant(pair.answer)], id=pair.id)


def repeat_example(bank: Bank, pairs: list[Pair]) -> Example:
    """Ask for a few words to be said again: the shortest exercise in copying.

    Some of the words are cut out of the corpus anywhere, so that every piece of the vocabulary is copied.
    """
    rng = bank.rng

    def word() -> str:
        kind = rng.random()
        if kind < 0.4:
            answer = rng.choice(pairs).answer
            start = rng.randrange(len(answer))
            return answer[start : start + rng.randint(2, 10)].strip() or "a"
        return bank.entity() if kind < 0.85 else bank.pick("phrase")

    text = " ".join(word() for _ in range(rng.randint(1, 6)))
    return Example("repeat", [user(rng.choice(PHRASES["context"]["repeats"]).format(text)), assistant(text)])


def shares(questions: float) -> dict[str, float]:
    """Return SHARES with another share of questions, the others scaled to fill the rest; 0 leaves them as they are."""
    if not questions:
        return SHARES
    scale = (1 - questions) / (1 - SHARES["question"])
    return {name: questions if name == "question" else share * scale for name, share in SHARES.items()}


def training_examples(
    pairs: list[Pair], rng: Random, count: int, easy: float = 0.0, questions: float = 0.0
) -> list[Example]:
    """Return a mixed batch of exercises; `easy` is the share that is replaced by copying a few words.

    Questions go through the corpus in a shuffled order, so that each pair is seen equally often.
    """
    bank = Bank(rng)
    mix = shares(questions)
    examples: list[Example] = []
    order: list[Pair] = []
    for _ in range(count):
        kind = rng.choices(list(mix), list(mix.values()))[0]
        if rng.random() < easy:
            kind = "repeat"
        if kind == "question":
            order = order or rng.sample(pairs, len(pairs))
            examples.append(question_example(pairs, order.pop(), rng))
        elif kind == "tools":
            examples.append(tool_example(bank, pairs))
        elif kind == "context":
            examples.append(context_example(bank, pairs, long=rng.random() < LONG_CONTEXTS))
        else:
            examples.append(repeat_example(bank, pairs) if kind == "repeat" else off_topic_example(bank, pairs))
    return examples


def measured_sets(pairs: list[Pair], seed: int = 1, count: int = 200) -> dict[str, list[Example]]:
    """Return the sets of the measurement by name.

    Their held-out phrasings, tools and words are never trained, but for the sets that say so: these are fresh
    exercises over the trained words, and tell how much of an error is the strange word and how much the task.
    """
    bank = Bank(Random(seed), "test")

    def many(bank: Bank, kind: str, wanted: str, size: int = count, long: bool = False) -> list[Example]:
        found: list[Example] = []
        while len(found) < size:
            example = context_example(
                bank, pairs, long=long, kind=kind, unknown=1.0 if wanted == "unanswerable" else 0.0
            )
            found += [example] if example.kind == wanted else []
        return found

    sets = {}
    for lang, word in (("en", "English"), ("zh", "Chinese")):
        own = [pair for pair in pairs if pair.lang == lang]
        sets[f"trained questions, {word}"] = [plain_example(p, text, "trained") for p in own for text in p.train]
        sets[f"held-out questions, {word}"] = [plain_example(p, text, "held-out") for p in own for text in p.held_out]
    calling = [tool_example(bank, pairs, rounds=False) for _ in range(count)]
    sets["tool call, unseen tools"] = calling
    rounds: list[Example] = []
    while len(rounds) < count:
        example = tool_example(bank, pairs)
        rounds += [example] if example.messages[-2]["role"] == "tool" else []
    sets["answer after a tool result"] = rounds
    rng = bank.rng
    sets["corpus question while tools are offered"] = [
        Example(
            "question",
            [user(rng.choice(pair.held_out)), assistant(pair.answer)],
            rng.choice(calling).tools,
            pair.id,
        )
        for pair in rng.sample(pairs, min(count, len(pairs)))
    ]
    sets["copy from a context, unseen entities"] = many(bank, "facts", "context")
    sets["copy from a context, corpus sentences"] = many(bank, "corpus", "context")
    sets["copy from a long context"] = many(bank, "facts", "context", count // 5, long=True)
    sets["unanswerable from the context"] = many(bank, "facts", "unanswerable")
    sets["off topic, no tool and no context"] = [off_topic_example(bank, pairs) for _ in range(count // 2)]
    trained = Bank(Random(seed + 1))
    sets["tool call, trained words"] = [tool_example(trained, pairs, rounds=False) for _ in range(count)]
    sets["copy from a context, trained words"] = many(trained, "facts", "context")
    sets["unanswerable from the context, trained words"] = many(trained, "facts", "unanswerable")
    return sets
