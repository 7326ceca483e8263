"""`qlangchain run MODEL "prompt"`: one answer, for people and for scripts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qlangchain.cli import options
from qlangchain.cli.output import errors, notices, print_json
from qlangchain.errors import InvalidInputError


def run(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="What to ask; '-' reads it from standard input.")] = "-",
    hardware: options.HardwareWord = "auto",
    format: options.Format = None,
    context: options.Context = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = None,
    system: options.System = None,
    endpoint: options.EndpointUrl = None,
    fast: options.Fast = False,
    json: options.Json = False,
) -> None:
    """Ask a model once and print its answer."""
    from langchain_core.messages import HumanMessage, SystemMessage

    from qlangchain.cli.speaking import prepare, speak
    from qlangchain.models.chat import ChatQuantized

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise InvalidInputError("The prompt is empty.", hint='For example: qlangchain run demo "What is GPTQ?"')
    with notices(show=not json) as said:
        chat = ChatQuantized(
            model=model,
            hardware=hardware,
            format=format,
            context_length=context,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            endpoint=endpoint,
            precision_required=not fast,
        )
        prepare(chat, show=not json)
        messages = [*([SystemMessage(system)] if system else []), HumanMessage(text)]
        spoken = speak(chat, messages, (lambda _: None) if json else _write)
    if json:
        print_json({**spoken.to_dict(), "notices": said})
        return
    sys.stdout.write("\n")
    if sys.stderr.isatty():
        errors.print(f"[dim]{spoken.speed}[/]")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
