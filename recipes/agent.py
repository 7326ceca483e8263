"""An agent on a local model: two tools on this machine, structured answers, and middleware for a small context.

    python recipes/agent.py "What is 27 times 14?"
    python recipes/agent.py "What is 27 times 14?" --structured provider

A conversation that fills half of the context is summarized, a call that failed by chance is tried again, and where
the model stays away its fallback answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelFallbackMiddleware,
    ModelRequest,
    ModelRetryMiddleware,
    SummarizationMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, convert_to_messages
from langchain_core.tools import tool
from pydantic import BaseModel

from qlangchain import ChatQuantized, get_chat_model
from qlangchain.errors import QlangchainError

MOST_ROUNDS = 3  # of tool calls before the answer
SUMMARY = "Context:\n{messages}\n\nQuestion: What has been said and done so far?"


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
def get_current_time() -> str:
    """Get the current time."""
    return f"It is {datetime.now().astimezone():%H:%M} now."


class Result(BaseModel):
    """The final answer."""

    answer: str


class _EnoughTools(AgentMiddleware):
    """After some rounds offers no more tools: a small model that must call one may go on calling it for ever."""

    def wrap_model_call(self, request: ModelRequest, handler: Callable[[ModelRequest], Any]) -> Any:
        last_question = max((i for i, m in enumerate(request.messages) if m.type == "human"), default=0)
        rounds = sum(isinstance(m, AIMessage) and bool(m.tool_calls) for m in request.messages[last_question:])
        return handler(request.override(tools=[]) if rounds >= MOST_ROUNDS else request)

    async def awrap_model_call(self, request: ModelRequest, handler: Callable[[ModelRequest], Any]) -> Any:
        return await self.wrap_model_call(request, handler)


def build(model: ChatQuantized, fallback: ChatQuantized, *, structured: str | None = None) -> Any:
    """Return an agent with both tools.

    Args:
        model: answers, and summarizes its own conversation. An endpoint needs profile={"max_input_tokens": ...}.
        fallback: answers where `model` fails; the same model in a smaller format, or an endpoint.
        structured: "tool" (a forced call of Result), "provider" (the grammar allows Result or a tool call), or
            None for text.

    """
    strategies = {"tool": ToolStrategy(Result), "provider": ProviderStrategy(Result), None: None}
    summarize = SummarizationMiddleware(
        model,
        trigger=("fraction", 0.5),
        keep=("messages", 4),
        token_counter=lambda messages: model.get_num_tokens_from_messages(convert_to_messages(messages)),
        summary_prompt=SUMMARY,
        trim_tokens_to_summarize=(model.profile or {}).get("max_input_tokens", 4096) // 2,
    )
    # The first is the outermost: each model is tried again by itself before the next one is taken.
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.2, on_failure="error")
    return create_agent(
        model,
        [multiply, get_current_time],
        middleware=[summarize, ModelFallbackMiddleware(fallback), retry, _EnoughTools()],
        response_format=strategies[structured],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask the agent and print what was said and done."""
    parser = argparse.ArgumentParser(description="Ask an agent that runs on a local model.")
    parser.add_argument("questions", nargs="+", help="the turns of one conversation, each in quotes")
    parser.add_argument("--model", default="demo", help="name or path of the model (default: demo)")
    parser.add_argument("--fallback", default="demo", help="what answers where it fails (default: demo)")
    parser.add_argument("--structured", choices=["tool", "provider"], help="answer with a value of a schema")
    options = parser.parse_args(arguments)
    state: dict[str, Any] = {"messages": []}
    try:
        model, fallback = (get_chat_model(n, temperature=0, max_tokens=256) for n in (options.model, options.fallback))
        model.warm_up()  # a name that is wrong is an error now; later only its profile would be missing
        agent = build(model, fallback, structured=options.structured)
        for question in options.questions:
            state = agent.invoke({"messages": [*state["messages"], {"role": "user", "content": question}]})
    except QlangchainError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    for message in state["messages"]:
        message.pretty_print()
    if "structured_response" in state:
        print(f"\n{state['structured_response']!r}")


if __name__ == "__main__":
    main()
