"""Exercises in calling tools: many made-up tools, a question that needs one, the call, and the closing sentence."""

from __future__ import annotations

from random import Random
from typing import Any

from qlangchain.demo.example import Example, Message, assistant, calls, system, tool_result, user
from qlangchain.demo.questions import SYSTEMS, Pair, vary
from qlangchain.demo.words import ENUMS, Bank, invented

Call = tuple[str, dict[str, Any]]
# A tool, the question that needs it, the call, and the language of the question.
Task = tuple[Message, str, Call, str]
HINTS = [
    "",
    "",
    "",
    "",
    " Use the tool.",
    " Please use the tool.",
    " Use the tools.",
    " Use a tool for this.",
]


def schema(name: str, description: str, parameters: dict[str, Message], rng: Random) -> Message:
    """Return an OpenAI function schema; the order of its keys varies as it does between libraries."""
    required = [key for key in parameters if rng.random() < 0.95]
    parts: list[tuple[str, Any]] = [("type", "object"), ("properties", parameters), ("required", required)]
    if not required and rng.random() < 0.7:
        parts.pop()
    if rng.random() < 0.5:
        parts = parts[1:] + parts[:1]
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": dict(parts)},
    }


def typed(kind: str, rng: Random, description: str = "", options: list[str] | None = None) -> Message:
    """Return the schema of one parameter."""
    parts: list[tuple[str, Any]] = [("type", kind)]
    if description and rng.random() < 0.4:
        parts.append(("description", description))
    if options:
        parts.append(("enum", options))
    if rng.random() < 0.4:
        rng.shuffle(parts)
    return dict(parts)


def shaped(name: str, rng: Random) -> str:
    """Write a tool name in snake case, or now and then in another common case."""
    words = name.replace("-", "_").replace(" ", "_").split("_")
    kind = rng.random()
    if kind < 0.75:
        return "_".join(words).lower()
    if kind < 0.9:
        return words[0].lower() + "".join(word.capitalize() for word in words[1:])
    return "".join(word.capitalize() for word in words)


def value_for(bank: Bank, kind: str, options: list[str] | None) -> Any:
    """Return a value of a JSON type."""
    if options:
        return bank.rng.choice(options)
    if kind == "integer":
        return bank.integer()
    if kind == "number":
        return bank.number()
    if kind == "boolean":
        return bank.rng.random() < 0.5
    return bank.pick("phrase") if bank.rng.random() < 0.2 else bank.entity()


def spoken(value: Any) -> str:
    """Return a value as a question writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def lookup(bank: Bank) -> Task:
    """Return a tool that looks up one thing about one subject, such as the weather of a city."""
    rng = bank.rng
    topic, subject = bank.pick("topic"), bank.pick("subject")
    name = shaped(
        rng.choice(["get_{}", "fetch_{}", "find_{}", "lookup_{}", "{}_lookup", "check_{}", "{}"]).format(
            topic
        ),
        rng,
    )
    description = rng.choice(
        [
            "Get the {} for a {}.",
            "Look up the {} of a {}.",
            "Return the {} of the given {}.",
            "The {} of a {}",
        ]
    )
    chinese = rng.random() < 0.08
    value = bank.pick("zh_city" if rng.random() < 0.7 else "zh_name") if chinese else bank.entity()
    if not chinese and rng.random() < 0.15:
        value = f"{bank.pick('material')} {bank.pick('object')}"
    asks = ["What is the {t} of {v}?", "What's the {t} in {v}?", "What is the {t} for {v}?", "Tell me the {t} of {v}.", "{t} of {v}",
            "Look up the {t} for {v}.", "I need the {t} of {s} {v}.", "How is the {t} in {v}?", "what is the {t} in {v} right now?",
            "Can you check the {t} of {v}?", "Please find the {t} for the {s} {v}.", "Give me the {t} for \"{v}\".",
            "Do you know the {t} of {v}?", "What is the current {t} in {v}?", "What's the {t} like in {v} today?"]  # fmt: skip
    if chinese:
        asks = ["{v}的 {t} 是什么？", "请查一下{v}的 {t}。", "{v}的 {t} 怎么样？", "请用工具查询{v}的 {t}。"]
    question = rng.choice(asks).format(t=topic, v=value, s=subject.replace("_", " "))
    tool = schema(name, description.format(topic, subject.replace("_", " ")),
                  {subject: typed("string", rng, f"The {subject}.")}, rng)  # fmt: skip
    return tool, question, (name, {subject: value}), "zh" if chinese else "en"


ARITHMETIC = {
    "add": ["What is {a} plus {b}?", "Add {a} and {b}.", "What is {a} + {b}?", "Compute {a}+{b}.", "请计算 {a} 加 {b}。"],
    "multiply": ["What is {a} times {b}?", "Multiply {a} by {b}.", "What is {a} * {b}?", "Compute {a} x {b}.", "{a} 乘以 {b} 等于多少？"],
    "subtract": ["What is {a} minus {b}?", "What is {a} - {b}?", "Calculate {a} minus {b}.", "{a} 减 {b} 等于多少？"],
    "divide": ["Divide {a} by {b}.", "What is {a} divided by {b}?", "What is {a} / {b}?"],
    "power": ["What is {a} to the power of {b}?", "Raise {a} to the power {b}."],
}  # fmt: skip


def arithmetic(bank: Bank) -> Task:
    """Return a tool for two numbers."""
    rng = bank.rng
    name = rng.choice(sorted(ARITHMETIC))
    kind = rng.choice(["integer", "integer", "number"])
    first, second = rng.choice([("a", "b"), ("x", "y"), ("first", "second"), ("left", "right"), ("n1", "n2")])
    a, b = value_for(bank, kind, None), value_for(bank, kind, None)
    question = rng.choice(ARITHMETIC[name])
    tool = schema(
        name, f"{name.capitalize()} two numbers.", {first: typed(kind, rng), second: typed(kind, rng)}, rng
    )
    return (
        tool,
        question.format(a=a, b=b),
        (name, {first: a, second: b}),
        "zh" if ord(question[-1]) > 127 else "en",
    )


def named(bank: Bank) -> Task:
    """Return a tool that the question calls by its name, with arguments of any type."""
    rng = bank.rng
    name = rng.choice([f"{invented(rng)}_{rng.choice(['tool', 'function', bank.pick('object')])}",
                       f"{bank.pick('verb')}_{bank.pick('object')}", f"{bank.pick('topic')}_function", invented(rng)])  # fmt: skip
    name = shaped(name, rng)
    parameters: dict[str, Message] = {}
    values: dict[str, Any] = {}
    for key in rng.sample(bank.list("parameter"), rng.choice([1, 1, 1, 2, 2, 3])):
        kind = rng.choice(["string", "string", "integer", "integer", "number", "boolean", "enum"])
        options = rng.choice(ENUMS) if kind == "enum" else None
        kind = "string" if options else kind
        parameters[key] = typed(kind, rng, f"The {key}.", options)
        values[key] = value_for(bank, kind, options)
    shown = [
        (key, spoken(v), f"'{v}'" if isinstance(v, str) and rng.random() < 0.5 else spoken(v))
        for key, v in values.items()
    ]
    positional = ", ".join(quoted for _, _, quoted in shown)
    styles = [f"What is the value of {name}({positional})?", f"Call {name}({positional}).", f"Compute {name} of {positional}.",
              f"Call {name} with " + " and ".join(f"{k} {v}" for k, v, _ in shown) + ".",
              f"Use {name} with " + ", ".join(f"{k}={q}" for k, _, q in shown) + ".",
              f"Please run {name} with the " + " and the ".join(f"{k} {q}" for k, _, q in shown) + ".",
              f"Run {name}: " + ", ".join(f"{k}: {v}" for k, v, _ in shown), f"What does {name} return for {positional}?",
              "请用 " + name + " 工具，" + "，".join(f"{k} 为 {v}" for k, v, _ in shown) + "。"]  # fmt: skip
    question = rng.choice(styles)
    description = rng.choice(
        ["Applies {n} to its input.", "The {n} function.", "Runs {n}.", "{n}", "A special function."]
    )
    tool = schema(name, description.format(n=name), parameters, rng)
    return tool, question, (name, values), "zh" if question.startswith("请") else "en"


def action(bank: Bank) -> Task:
    """Return a tool that does something to an object, described in words."""
    rng = bank.rng
    verb, thing = bank.pick("verb"), bank.pick("object")
    name = shaped(f"{verb}_{thing}", rng)
    key = bank.pick("parameter")
    kind = rng.choice(["string", "string", "integer", "number", "boolean", "enum", "none", "none"])
    options = rng.choice(ENUMS) if kind == "enum" else None
    kind = "string" if options else kind
    description = f"{verb.capitalize()} the {thing}."
    if kind == "none":
        question = rng.choice(
            [
                "{v} the {o}.",
                "Please {v} the {o}.",
                "Can you {v} the {o}?",
                "{v} the {o} now",
                "I want you to {v} the {o}.",
            ]
        )
        return schema(name, description, {}, rng), question.format(v=verb, o=thing), (name, {}), "en"
    value = value_for(bank, kind, options)
    question = rng.choice(["{v} the {o} with {k} {x}.", "Please {v} the {o}, {k} {x}.", "Can you {v} the {o} with {k} {x}?",
                           "{v} the {o} and set the {k} to {x}.", "{v} {o} ({k}: {x})", "I want to {v} the {o} with the {k} {x}."])  # fmt: skip
    question = question.format(v=verb, o=thing, k=key, x=spoken(value))
    return (
        schema(name, description, {key: typed(kind, rng, f"The {key}.", options)}, rng),
        question,
        (name, {key: value}),
        "en",
    )


EVERYDAY: list[tuple[str, str, dict[str, str], list[str]]] = [
    ("send_email", "Send an email.", {"to": "name", "subject": "phrase"}, ["Send an email to {to} about {subject}.", "Email {to} with the subject '{subject}'."]),
    ("set_alarm", "Set an alarm.", {"hour": "hour", "minute": "hour"}, ["Set an alarm for {hour}:{minute}.", "Wake me at {hour}:{minute}."]),
    ("book_flight", "Book a flight.", {"origin": "city", "destination": "city"}, ["Book a flight from {origin} to {destination}.", "I want to fly from {origin} to {destination}."]),
    ("translate", "Translate a text.", {"text": "phrase", "language": "language"}, ["Translate '{text}' into {language}.", "Say \"{text}\" in {language}."]),
    ("search", "Search the web.", {"query": "phrase"}, ["Search the web for {query}.", "Find pages about {query}.", "Google \"{query}\"."]),
    ("convert_currency", "Convert money.", {"amount": "number", "source": "money", "target": "money"}, ["Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?"]),
    ("add_reminder", "Add a reminder.", {"text": "phrase", "day": "day"}, ["Remind me to {text} on {day}.", "On {day}, remind me: {text}."]),
    ("get_current_time", "Get the current time.", {}, ["What time is it?", "Tell me the time.", "现在几点了？"]),
    ("get_weather", "Get the current weather in a city.", {"city": "city"}, ["What's the weather in {city}?", "Is it raining in {city}?", "How warm is it in {city}?"]),
    ("create_user", "Create a user.", {"name": "name", "age": "hour"}, ["Create a user {name}, aged {age}.", "Add {name} who is {age} years old."]),
    ("Person", "Information about a person.", {"name": "name", "age": "hour"}, ["{name} is {age} years old.", "My name is {name} and I am {age}.", "Extract: {name}, age {age}."]),
    ("read_file", "Read a file.", {"path": "word"}, ["Read the file {path}.", "Show me {path}.", "What does {path} contain?"]),
    ("roll_dice", "Roll dice.", {"sides": "hour", "count": "hour"}, ["Roll {count} dice with {sides} sides."]),
]  # fmt: skip


def everyday(bank: Bank) -> Task:
    """Return one of the tools that people write first, asked for in plain words."""
    rng = bank.rng
    name, description, kinds, asks = rng.choice(EVERYDAY)
    lists = {"language": ["French", "German", "Spanish", "Italian", "Chinese"], "money": ["USD", "EUR", "GBP", "JPY", "CNY"],
             "day": ["Monday", "Tuesday", "Friday", "Sunday"]}  # fmt: skip
    values: dict[str, Any] = {}
    for key, kind in kinds.items():
        if kind == "hour":
            values[key] = rng.randint(1, 59)
        elif kind in ("number", "word"):
            values[key] = bank.integer() if kind == "number" else invented(rng) + ".txt"
        else:
            values[key] = rng.choice(lists[kind]) if kind in lists else bank.pick(kind)
    question = rng.choice(asks)
    parameters = {
        key: typed("integer" if kind in ("hour", "number") else "string", rng, f"The {key}.")
        for key, kind in kinds.items()
    }
    return (
        schema(name, description, parameters, rng),
        question.format(**values),
        (name, values),
        "zh" if "现" in question else "en",
    )


MAKERS = [lookup, lookup, lookup, arithmetic, named, named, named, action, action, everyday]


def result_of(bank: Bank, lang: str) -> tuple[str, str]:
    """Return what a tool said and the sentence that reports it."""
    rng = bank.rng
    kind = rng.random()
    if kind < 0.55:
        text = rng.choice([str(bank.integer()), str(bank.number()), bank.entity(), bank.pick("phrase"),
                           f"{bank.pick('material')}, {bank.integer()} degrees", str(rng.randint(0, 99))])  # fmt: skip
        return text, (f"结果是 {text}。" if lang == "zh" else f"The result is {text}.")
    if kind < 0.9:
        text = rng.choice([f"The {bank.pick('topic')} of {bank.entity()} is {bank.entity()}.", f"It is {bank.integer()} degrees in {bank.pick('city')}.",
                           f"{bank.pick('city')} is {bank.pick('material')} today.", f"Done: {bank.pick('verb')} {bank.pick('object')} {bank.integer()}.",
                           f"{bank.entity()} has {bank.integer()} {bank.pick('object')} left."])  # fmt: skip
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
    wanted, (_, question, call, lang) = 0, tasks[0]
    tools = [task[0] for task in tasks]
    order = rng.sample(range(len(tools)), len(tools))
    tools = [tools[place] for place in order]
    messages = [system(rng.choice(SYSTEMS))] if rng.random() < 0.25 else []
    if rng.random() < 0.12 and rounds:
        pair = rng.choice(pairs)
        messages += [user(vary(rng.choice(pair.train), pair.lang, rng)), assistant(pair.answer)]
        return Example("tools_not_needed", messages, tools, pair.id)
    if lang == "en":
        question = question if rng.random() < 0.2 else question[0].upper() + question[1:]
        question += rng.choice(HINTS) if question[-1] in ".?" else ""
    messages.append(user(question))
    if rounds and len(tasks) > wanted + 1 and rng.random() < 0.08:
        # Two calls at once, of two tools, as agents make them.
        second = tasks[1]
        messages[-1] = user(f"{question} {second[1][0].upper()}{second[1][1:]}")
        first_text, second_text = str(bank.integer()), bank.entity()
        messages += [calls(call, second[2]), tool_result(first_text), tool_result(second_text)]
        return Example(
            "tools", [*messages, assistant(f"The results are {first_text} and {second_text}.")], tools
        )
    messages.append(calls(call))
    if rounds and rng.random() < 0.7:
        text, sentence = result_of(bank, lang)
        messages += [tool_result(text), assistant(sentence)]
    return Example("tools", messages, tools)
