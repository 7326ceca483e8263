"""Options that several commands take, written once."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="'demo', a path, or a hub id such as Qwen/Qwen3-4B-GGUF:Q4_K_M.")]
HardwareWord = Annotated[str, typer.Option("--hardware", help="auto, cpu, gpu or hybrid.")]
Format = Annotated[str | None, typer.Option("--format", help="Such as Q4_0, where the choice is not the planner's.")]
Context = Annotated[int | None, typer.Option("--context", help="Context length in tokens.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Tokens of an answer at most.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy: always the likeliest token.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.")]
System = Annotated[str | None, typer.Option("--system", help="A system message.")]
EndpointUrl = Annotated[str | None, typer.Option("--endpoint", help="URL of an OpenAI-compatible server.")]
Fast = Annotated[bool, typer.Option("--fast", help="Size before accuracy: precision_required=False.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
