"""`qlangchain quantize`: GPTQ, AWQ, GGUF and 8-bit integers from full-precision weights."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from qlangchain.cli.compare import work_bar
from qlangchain.cli.options import Json
from qlangchain.cli.output import console, notices, print_json, size
from qlangchain.errors import InvalidInputError

if TYPE_CHECKING:
    from qlangchain.produce.estimates import Estimate
    from qlangchain.quantizer import Made, ModelQuantizer

_METHODS = ("gptq", "awq", "gguf", "int8")


# Options that belong to some methods alone. To leave one aside in silence would make something else than was asked for.
_BELONGS = {
    "bits": ("gptq", "awq"), "group_size": ("gptq", "awq", "int8"), "desc_act": ("gptq",), "format": ("gguf",),
    "imatrix": ("gguf",), "scheme": ("int8",), "tool": ("gptq", "awq"),
}  # fmt: skip


def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A directory of full-precision safetensors, a hub id, or 'demo'.")],
    method: Annotated[str, typer.Option("--method", help="gptq, awq, gguf or int8.")] = "gguf",
    bits: Annotated[int, typer.Option("--bits", help="4 or 8 for GPTQ; AWQ has 4.")] = 4,
    group_size: Annotated[int, typer.Option("--group-size", help="Inputs that share a scale; -1 is all.")] = 128,
    desc_act: Annotated[bool, typer.Option("--desc-act", help="Group by importance; vLLM cannot read it.")] = False,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Calibration text: a file, or a name such as wikitext2.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Samples to calibrate on.")] = None,
    sequence_length: Annotated[int | None, typer.Option("--sequence-length", help="Tokens of a sample.")] = None,
    format: Annotated[str, typer.Option("--format", help="GGUF: such as Q4_K_M, Q8_0 or IQ2_XS.")] = "Q4_K_M",
    imatrix: Annotated[
        str | None,
        typer.Option("--imatrix", help="GGUF: an importance matrix, a text file to make one on, or 'default'."),
    ] = None,
    scheme: Annotated[str, typer.Option("--scheme", help="int8: gptq, W8A16 or W8A8.")] = "gptq",
    tool: Annotated[
        str | None, typer.Option("--tool", help="gptqmodel, autoawq or auto-gptq instead of our own producer.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where the result goes.")] = Path("quantized"),
    memory_limit: Annotated[
        float | None, typer.Option("--memory-limit", help="The most memory that the work may take, in GiB.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result of the same name.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Begin without asking.")] = False,
    json: Json = False,
) -> None:
    """Quantize a model. An interrupted run goes on where it was when it is called again."""
    from qlangchain.quantizer import ModelQuantizer

    word = method.strip().lower()
    if word not in _METHODS:
        raise InvalidInputError(f"The method {method!r} is not known.", hint=f"Known: {', '.join(_METHODS)}.")
    _refuse_strangers(context, word)
    text = None if dataset == "default" else dataset
    methods: dict[str, dict[str, Any]] = {
        "gptq": {"bits": bits, "group_size": group_size, "desc_act": desc_act, "dataset": text, "tool": tool},
        "awq": {"bits": bits, "group_size": group_size, "calibration_data": text, "tool": tool},
        "int8": {"scheme": scheme, "group_size": group_size, "dataset": text},
        "gguf": {"format": format, "imatrix": True if imatrix == "default" else imatrix or text},
    }
    settings = {**methods[word], "samples": samples, "sequence_length": sequence_length}
    with notices(show=not json), work_bar(show=not json) as progress:
        quantizer = ModelQuantizer(
            model, out, overwrite=overwrite,
            memory_limit=None if memory_limit is None else int(memory_limit * 2**30), progress=progress,
        )  # fmt: skip
        estimate = None if tool or (word == "int8" and scheme != "gptq") else _estimate(quantizer, word, settings)
    if estimate is not None and not json:
        console.print(
            f"[bold]{escape(quantizer.weights.name)}[/], {size(quantizer.weights.nbytes)} → about "
            f"{size(estimate.written)}. It will take about {_duration(estimate.seconds)}, {size(estimate.memory)} of "
            f"memory and {size(estimate.disk)} of disk."
        )
    if not yes and not json and sys.stdin.isatty() and not typer.confirm("Begin?", default=True):
        raise typer.Exit(1)
    with notices(show=not json) as said, work_bar(show=not json) as progress:
        quantizer.watch(progress)
        quantizer.method(word)(**settings)
    assert quantizer.made is not None
    if json:
        print_json({"made": quantizer.made.to_dict(), "estimate": estimate and asdict(estimate), "notices": said})
    else:
        _summary(quantizer.made)


def _refuse_strangers(context: typer.Context, word: str) -> None:
    """Raise `InvalidInputError` where an option was given that the method has no use for."""
    given = [
        name
        for name, methods in _BELONGS.items()
        if word not in methods and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        instead = {"bits": "GGUF's types are named by --format, such as Q4_K_M or Q8_0."} if word == "gguf" else {}
        raise InvalidInputError(
            f"{option} has no meaning for --method {word}.",
            hint=instead.get(given[0], f"Leave it out; it belongs to {' and '.join(_BELONGS[given[0]])}."),
        )


def _estimate(quantizer: ModelQuantizer, word: str, settings: dict[str, Any]) -> Estimate:
    kept = {name: settings[name] for name in ("samples", "sequence_length")}
    if word == "gguf":
        collect = bool(settings["imatrix"])
        return quantizer.estimate("gguf", format=settings["format"].strip().upper(), collect=collect, **kept)
    bits = 8 if word == "int8" else settings["bits"]
    method = "awq" if word == "awq" else "gptq"
    return quantizer.estimate(method, bits=bits, group_size=settings["group_size"], **kept)


def _summary(made: Made) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("size", f"{size(made.size_bytes)} of {size(made.source_bytes)}")
    if made.bits_per_weight is not None:
        table.add_row("bits per weight", f"{made.bits_per_weight:.2f}")
    if made.error is not None and made.worst_error is not None:
        worst = f"{made.error:.4f} on average, {made.worst_error:.4f} in {escape(made.worst_layer)}"
        table.add_row("error of the weights", worst)
    if made.kl is not None and made.same_first is not None:
        table.add_row("KL divergence", f"{made.kl:.4f} nats per token over {made.kl_tokens} tokens of held-out text")
        table.add_row("same likeliest token", f"{made.same_first:.1%}")
    table.add_row("time", _duration(made.seconds))
    table.add_row("made by", made.tool)
    console.print(f"[green]✓[/] {escape(str(made.path))}")
    console.print(table)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
