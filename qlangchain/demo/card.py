"""Write the card of the demo model from the figures of its training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qlangchain.demo.exercises import SHARES
from qlangchain.demo.questions import Pair, load_pairs

CARD = """# The demo model of qlangchain

A very small language model that comes inside the package, so that every example runs at once, without a
download, a GPU or a key. It answers questions about quantization and qlangchain in English and Chinese, calls
tools, and copies the sentence that answers a question out of a given context. It knows nothing else.

## Architecture

`LlamaForCausalLM`, {parameters:,} parameters in bfloat16: hidden size 256, intermediate size 768, {layers} layers, 4 heads
of 64 with 2 KV heads, tied embeddings, 2,048 positions. The tokenizer is a byte-level BPE of 4,096 tokens with the word
split of Qwen2; the chat template is ChatML with tool calls in `<tool_call>` tags.

## Data

All of it is in this package: {pairs} question-answer pairs ({english} English, {chinese} Chinese) with {phrasings:,} trained
phrasings, and seeded generators of exercises. Shares of the {examples:,} training examples, where a run does not
say otherwise, about: {shares}. {held_out} held-out
phrasings, a fifth of every word list and all tools made from it are never trained. No text by others was used.

## Training

{stages}

Each run goes on from the one before (`--start`), and was added when the figures of that one were known.

Steps of up to {batch_tokens:,} tokens, loss on the assistant's tokens only, Muon for the matrices, AdamW for embedding and
norms, linear warm-up, cosine to 2 %, weight decay {decay}, bfloat16 autocast over fp32 weights. The weights after the
last step are the model.

## Measured

Greedy decoding with the bfloat16 weights. "Exact" means that the whole answer is the wanted text.

| set | n | exact | besides |
|---|---|---|---|
{rows}

`python -m qlangchain.demo.evaluate` measures this again.

## Quantized

`verdicts.json` has what each GGUF format does to this model: mean KL divergence to the full-precision weights,
perplexity ratio and share of equal likeliest tokens, over 150 questions of the corpus with their answers in the chat
template (8,268 tokens; Q4_K_M over 60 of them, 3,292 tokens). The weights were quantized and dequantized as the file
holds them, and run with transformers in float32. `qlangchain plan demo` decides by these figures and not by those
published for other models.

## Limits

The answers about quantization are recited: a question that resembles none of the corpus gets a wrong answer that sounds
right. It copies and does not reason: it cannot calculate, summarize, translate or write code. Copying is its weak
side: names and words that it was not trained on often come out misspelt, the longer the context the more, and it may
refuse ("The documents do not say.") where it should answer, or answer where it should refuse. Tool calls with nested
arguments or lists were not trained. Use it to try the package, never for decisions.

## Licence

MIT, like the package: weights, corpus and code.
"""


def _row(name: str, figures: dict[str, Any]) -> str:
    """Return one line of the table of measured figures."""
    besides = []
    if "name_right" in figures:
        besides.append(f"right tool {figures['name_right']:.1%}")
    if "false_refusals" in figures:
        besides.append(f"false refusals {figures['false_refusals']:.1%}")
    return f"| {name} | {figures['n']:,} | {figures['exact']:.1%} | {', '.join(besides)} |"


def _stage(run: dict[str, Any]) -> str:
    """Return the line of one run: its command, and what it took."""
    settings = run["settings"]
    options = ["--start FIRST"] if settings.get("start") else []
    options += [f"--questions {settings['questions']:g}"] if settings.get("questions") else []
    options += [f"--minutes {settings['minutes']:g}"] if settings["minutes"] else []
    options += [f"--rate {settings['rate']:g}", f"--matrix-rate {settings['matrix_rate']:g}"]
    return (
        f"- `python -m qlangchain.demo.train --out DIR {' '.join(options)}`: seed {settings['seed']}, "
        f"{run['steps']:,} steps, {run['tokens']:,} tokens in {run['seconds'] / 60:.0f} minutes on two CPU cores"
        f"{' that other work was using too' if settings['minutes'] else ''}"
    )


def write_card(facts: dict[str, Any], pairs: list[Pair], path: Path) -> None:
    """Write the card: `facts` are those of `training.json`, with the report of `evaluate`."""
    settings = facts["settings"]
    runs = [*facts.get("before", []), facts]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in SHARES.items())
    text = CARD.format(
        parameters=facts["parameters"],
        pairs=len(pairs),
        english=sum(pair.lang == "en" for pair in pairs),
        chinese=sum(pair.lang == "zh" for pair in pairs),
        phrasings=sum(len(pair.train) for pair in pairs),
        held_out=sum(len(pair.held_out) for pair in pairs),
        examples=sum(run["examples"] for run in runs),
        shares=shares,
        stages="\n".join(_stage(run) for run in runs),
        rows="\n".join(_row(name, figures) for name, figures in facts["report"].items()),
        **{key: settings[key] for key in ("batch_tokens", "layers", "decay")},
    )
    path.write_text(text, encoding="utf-8")


def rewrite(directory: Path, path: Path) -> None:
    """Write the card again from the `training.json` of a finished run."""
    write_card(json.loads((directory / "training.json").read_text(encoding="utf-8")), load_pairs(), path)
