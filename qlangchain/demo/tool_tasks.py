"""Made-up tools with a question that needs each of them and the call that answers it."""

from __future__ import annotations

from random import Random
from typing import Any

from qlangchain.demo.example import Message
from qlangchain.demo.words import PHRASES, Bank, invented

Call = tuple[str, dict[str, Any]]
# A tool, the question that needs it, the call, and the language of the question.
Task = tuple[Message, str, Call, str]
TEXTS: dict[str, Any] = PHRASES["tools"]


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
    name = shaped(rng.choice(TEXTS["lookup_names"]).format(topic), rng)
    description = rng.choice(TEXTS["lookup_descriptions"])
    chinese = rng.random() < 0.08
    value = bank.pick("zh_city" if rng.random() < 0.7 else "zh_name") if chinese else bank.entity()
    if not chinese and rng.random() < 0.15:
        value = f"{bank.pick('material')} {bank.pick('object')}"
    asks = TEXTS["zh_lookup_asks" if chinese else "lookup_asks"]
    question = rng.choice(asks).format(t=topic, v=value, s=subject.replace("_", " "))
    description = description.format(topic, subject.replace("_", " "))
    tool = schema(name, description, {subject: typed("string", rng, f"The {subject}.")}, rng)
    return tool, question, (name, {subject: value}), "zh" if chinese else "en"


ARITHMETIC: dict[str, list[str]] = TEXTS["arithmetic"]


def arithmetic(bank: Bank) -> Task:
    """Return a tool for two numbers."""
    rng = bank.rng
    name = rng.choice(sorted(ARITHMETIC))
    kind = rng.choice(["integer", "integer", "number"])
    first, second = rng.choice([("a", "b"), ("x", "y"), ("first", "second"), ("left", "right"), ("n1", "n2")])
    a, b = value_for(bank, kind, None), value_for(bank, kind, None)
    question = rng.choice(ARITHMETIC[name])
    tool = schema(name, f"{name.capitalize()} two numbers.", {first: typed(kind, rng), second: typed(kind, rng)}, rng)
    return (
        tool,
        question.format(a=a, b=b),
        (name, {first: a, second: b}),
        "zh" if ord(question[-1]) > 127 else "en",
    )


def named(bank: Bank) -> Task:
    """Return a tool that the question calls by its name, with arguments of any type."""
    rng = bank.rng
    names = [
        f"{invented(rng)}_{rng.choice(['tool', 'function', bank.pick('object')])}",
        f"{bank.pick('verb')}_{bank.pick('object')}",
        f"{bank.pick('topic')}_function",
        invented(rng),
    ]
    name = shaped(rng.choice(names), rng)
    parameters: dict[str, Message] = {}
    values: dict[str, Any] = {}
    for key in rng.sample(bank.list("parameter"), rng.choice([1, 1, 1, 2, 2, 3])):
        kind = rng.choice(["string", "string", "integer", "integer", "number", "boolean", "enum"])
        options = rng.choice(TEXTS["enums"]) if kind == "enum" else None
        kind = "string" if options else kind
        parameters[key] = typed(kind, rng, f"The {key}.", options)
        values[key] = value_for(bank, kind, options)
    shown = [
        (key, spoken(v), f"'{v}'" if isinstance(v, str) and rng.random() < 0.5 else spoken(v))
        for key, v in values.items()
    ]
    positional = ", ".join(quoted for _, _, quoted in shown)
    styles = [
        f"What is the value of {name}({positional})?",
        f"Call {name}({positional}).",
        f"Compute {name} of {positional}.",
        f"Call {name} with " + " and ".join(f"{k} {v}" for k, v, _ in shown) + ".",
        f"Use {name} with " + ", ".join(f"{k}={q}" for k, _, q in shown) + ".",
        f"Please run {name} with the " + " and the ".join(f"{k} {q}" for k, _, q in shown) + ".",
        f"Run {name}: " + ", ".join(f"{k}: {v}" for k, v, _ in shown),
        f"What does {name} return for {positional}?",
        f"请用 {name} 工具，" + "，".join(f"{k} 为 {v}" for k, v, _ in shown) + "。",
    ]
    question = rng.choice(styles)
    description = rng.choice(TEXTS["named_descriptions"])
    tool = schema(name, description.format(n=name), parameters, rng)
    return tool, question, (name, values), "zh" if question.startswith("请") else "en"


def action(bank: Bank) -> Task:
    """Return a tool that does something to an object, described in words."""
    rng = bank.rng
    verb, thing = bank.pick("verb"), bank.pick("object")
    name = shaped(f"{verb}_{thing}", rng)
    key = bank.pick("parameter")
    kind = rng.choice(["string", "string", "integer", "number", "boolean", "enum", "none", "none"])
    options = rng.choice(TEXTS["enums"]) if kind == "enum" else None
    kind = "string" if options else kind
    description = f"{verb.capitalize()} the {thing}."
    if kind == "none":
        question = rng.choice(TEXTS["action_asks"])
        return schema(name, description, {}, rng), question.format(v=verb, o=thing), (name, {}), "en"
    value = value_for(bank, kind, options)
    question = rng.choice(TEXTS["action_value_asks"])
    question = question.format(v=verb, o=thing, k=key, x=spoken(value))
    return (
        schema(name, description, {key: typed(kind, rng, f"The {key}.", options)}, rng),
        question,
        (name, {key: value}),
        "en",
    )


def everyday(bank: Bank) -> Task:
    """Return one of the tools that people write first, asked for in plain words."""
    rng = bank.rng
    name, description, kinds, asks = rng.choice(TEXTS["everyday"]).values()
    lists: dict[str, list[str]] = TEXTS["everyday_words"]
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
