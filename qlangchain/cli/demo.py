"""`qlangchain demo`: the whole idea on the embedded model, with no network and no GPU."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from qlangchain.cli.options import HardwareWord, Json
from qlangchain.cli.output import console, notices, print_json, production_bar, size

_QUESTION = "What is the difference between GPTQ and AWQ?"


def demo(
    question: Annotated[
        str, typer.Argument(help="What to ask; the model knows quantization and qlangchain.")
    ] = _QUESTION,
    hardware: HardwareWord = "cpu",
    json: Json = False,
) -> None:
    """Choose, make, serve and ask the embedded demo model, and show every step."""
    from qlangchain import pipeline

    with notices(show=not json):
        wanted = pipeline.requirements(hardware=hardware)
        report: dict[str, Any] = {"machine": _machine(show=not json), "question": question}
        report["answer"] = _answer(question, wanted, hardware, None, show=not json)
        report["reference"] = _answer(question, wanted, hardware, "F16", show=not json)
    same = report["answer"]["text"] == report["reference"]["text"]
    report["same_text"] = same
    if json:
        print_json(report)
        return
    _compare(report)
    console.print('\nIn a program:  [bold]prompt | get_llm("demo", hardware="cpu")[/]')
    console.print("In a terminal: [bold]qlangchain chat demo[/]")


def _machine(*, show: bool) -> dict[str, Any]:
    from qlangchain import hardware

    found = hardware.detect()
    if show:
        gpus = ", ".join(f"{gpu.name} ({size(gpu.total_bytes)})" for gpu in found.gpus) or "none"
        console.rule("[bold]1. The machine", align="left")
        console.print(f"CPU: {escape(found.cpu or 'unknown')}, {found.cores} usable cores")
        console.print(
            f"Memory: {size(found.memory_available)} free of {size(found.memory_total)}   GPU: {escape(gpus)}"
        )
    return hardware.to_dict(found)


def _answer(question: str, wanted: Any, hardware: str, format: str | None, *, show: bool) -> dict[str, Any]:
    from dataclasses import replace

    from langchain_core.messages import HumanMessage

    from qlangchain import pipeline
    from qlangchain.cli.speaking import speak
    from qlangchain.models.chat import ChatQuantized
    from qlangchain.selection.explain import grouped

    with production_bar(f"Making {format or 'the artifact'}", show=show) as progress:
        prepared = pipeline.prepare("demo", replace(wanted, format=format), progress=progress)
    plan, artifact = prepared.plan, prepared.artifact
    if show and format is None:
        console.rule("[bold]2. The choice", align="left")
        console.print(f"[bold]{plan.method} {plan.format}[/] with {plan.library}, because:")
        for reason in plan.reasons:
            console.print(f"  • {escape(reason)}")
        for rejection in grouped(plan.rejected):
            console.print(f"  • not {escape(rejection.choice)}: {escape(rejection.reason)}")
        console.rule("[bold]3. The artifact", align="left")
        console.print(f"{artifact.origin.value}: {size(artifact.size_bytes)}, sha256 {artifact.digest[:16]}…")
    model = ChatQuantized(model="demo", hardware=hardware, format=format, temperature=0, max_tokens=200)
    if show:
        title = "4. The answer" if format is None else f"5. The same from {format}, unquantized"
        with console.status("Starting the engine …"):
            model.warm_up()
        console.rule(f"[bold]{title}", align="left")
        console.print(f"[cyan]{escape(question)}[/]")
    spoken = speak(
        model, [HumanMessage(question)], (lambda text: console.out(text, end="")) if show else lambda _: None
    )
    if show:
        console.print(f"\n[dim]{spoken.speed}[/]")
    return {
        **spoken.to_dict(),
        "format": plan.format,
        "origin": artifact.origin.value,
        "size_bytes": artifact.size_bytes,
        "digest": artifact.digest,
        "reasons": list(plan.reasons),
    }


def _compare(report: dict[str, Any]) -> None:
    table = Table("", "Size", "Tokens/s", "First token", box=None)
    for row in (report["answer"], report["reference"]):
        table.add_row(
            row["format"],
            size(row["size_bytes"]),
            f"{row['tokens_per_second']:.0f}",
            f"{row['first_token_seconds'] * 1000:.0f} ms",
        )
    console.print()
    console.print(table)
    console.print("The two answers are the same." if report["same_text"] else "The two answers differ.")
