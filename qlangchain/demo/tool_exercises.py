"""Exercises in calling tools: a question that needs one of several tools, the call, and the closing sentence."""

from __future__ import annotations

from qlangchain.demo.example import Example, assistant, calls, system, tool_result, user
from qlangchain.demo.questions import SYSTEMS, Pair, vary
from qlangchain.demo.tool_tasks import MAKERS
from qlangchain.demo.words import PHRASES, Bank


def result_of(bank: Bank, lang: str) -> tuple[str, str]:
    """Return what a tool said and the sentence that reports it."""
    rng = bank.rng
    kind = rng.random()
    if kind < 0.55:
        text = rng.choice(
            [
                str(bank.integer()),
                str(bank.number()),
                bank.entity(),
                bank.pick("phrase"),
                f"{bank.pick('material')}, {bank.integer()} degrees",
                str(rng.randint(0, 99)),
            ]
        )
        return text, (f"结果是 {text}。" if lang == "zh" else f"The result is {text}.")
    if kind < 0.9:
        text = rng.choice(
            [
                f"The {bank.pick('topic')} of {bank.entity()} is {bank.entity()}.",
                f"It is {bank.integer()} degrees in {bank.pick('city')}.",
                f"{bank.pick('city')} is {bank.pick('material')} today.",
                f"Done: {bank.pick('verb')} {bank.pick('object')} {bank.integer()}.",
                f"{bank.entity()} has {bank.integer()} {bank.pick('object')} left.",
            ]
        )
        return text, text
    text = f'{{"{bank.pick("parameter")}": {bank.integer()}, "{bank.pick("topic")}": "{bank.entity()}"}}'
    return text, (f"结果是 {text}。" if lang == "zh" else f"The result is {text}.")


def tool_example(bank: Bank, pairs: list[Pair], rounds: bool = True) -> Example:
    """Offer one to four tools and ask for one of them; `rounds` adds the tool's result and the closing sentence."""
    rng = bank.rng
    tasks = [rng.choice(MAKERS)(bank)]
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3])):
        other = rng.choice(MAKERS)(bank)
        if other[2][0] not in [task[2][0] for task in tasks]:
            tasks.append(other)
    _, question, call, lang = tasks[0]
    tools = rng.sample([task[0] for task in tasks], len(tasks))
    messages = [system(rng.choice(SYSTEMS))] if rng.random() < 0.25 else []
    if rng.random() < 0.12 and rounds:
        pair = rng.choice(pairs)
        messages += [user(vary(rng.choice(pair.train), pair.lang, rng)), assistant(pair.answer)]
        return Example("tools_not_needed", messages, tools, pair.id)
    if lang == "en":
        question = question if rng.random() < 0.2 else question[0].upper() + question[1:]
        question += rng.choice(PHRASES["tools"]["hints"]) if question[-1] in ".?" else ""
    messages.append(user(question))
    if rounds and len(tasks) > 1 and rng.random() < 0.08:
        # Two calls at once, of two tools, as agents make them.
        second = tasks[1]
        messages[-1] = user(f"{question} {second[1][0].upper()}{second[1][1:]}")
        first_text, second_text = str(bank.integer()), bank.entity()
        messages += [calls(call, second[2]), tool_result(first_text), tool_result(second_text)]
        return Example("tools", [*messages, assistant(f"The results are {first_text} and {second_text}.")], tools)
    messages.append(calls(call))
    if rounds and rng.random() < 0.7:
        text, sentence = result_of(bank, lang)
        messages += [tool_result(text), assistant(sentence)]
    return Example("tools", messages, tools)
