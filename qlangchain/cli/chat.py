"""`qlangchain chat MODEL`: a conversation in the terminal."""

from __future__ import annotations

import sys

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from qlangchain.cli import options
from qlangchain.cli.output import console, errors, notices
from qlangchain.errors import EngineError, PromptTooLongError

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C stops an answer."


def chat(
    model: options.Model = "demo",
    hardware: options.HardwareWord = "auto",
    format: options.Format = None,
    context: options.Context = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = None,
    system: options.System = None,
    endpoint: options.EndpointUrl = None,
    fast: options.Fast = False,
) -> None:
    """Talk with a model."""
    from qlangchain.cli.speaking import prepare
    from qlangchain.models.chat import ChatQuantized

    with notices():
        talker = ChatQuantized(
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
        prepare(talker, show=True)
        with errors.status("Starting the engine …"):
            talker.warm_up()
        console.print(f"[dim]{_HELP}[/]")
        history: list[BaseMessage] = [SystemMessage(system)] if system else []
        _converse(talker, history)


def _converse(talker: object, history: list[BaseMessage]) -> None:
    opening = list(history)
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if said in ("/exit", "/quit"):
            return
        if said == "/reset":
            history[:] = opening
        elif said.startswith("/"):
            console.print(f"[dim]{_HELP}[/]")
        elif said:
            _turn(talker, history, said)


def _turn(talker: object, history: list[BaseMessage], said: str) -> None:
    """Ask once; only a complete exchange becomes part of the conversation."""
    from qlangchain.cli.speaking import speak
    from qlangchain.models.chat import ChatQuantized

    assert isinstance(talker, ChatQuantized)
    try:
        spoken = speak(talker, [*history, HumanMessage(said)], lambda text: console.out(text, end=""))
    except KeyboardInterrupt:
        console.print("\n[dim]stopped[/]")
    except PromptTooLongError as error:
        errors.print(f"[yellow]{error.message} Use /reset to start anew.[/]")
    except EngineError as error:
        errors.print(f"\n[red]{error}[/]")
    else:
        console.print(f"\n[dim]{spoken.speed}[/]")
        history += [HumanMessage(said), AIMessage(spoken.text)]
