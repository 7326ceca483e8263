"""Summarize texts of any length within the model's context: pieces first, then their summaries, until one is left.

    python recipes/summarize.py REPORT.txt
    python recipes/summarize.py REPORT.txt NOTES.md --about "What does it say about GPTQ?"

Lengths are counted by the model's own tokenizer, so that no piece is ever cut off, and all pieces of a round are
decoded together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from langchain_core.prompts import PromptTemplate

from qlangchain import QuantizedLLM, get_llm
from qlangchain.chains import map_reduce
from qlangchain.errors import QlangchainError

MAIN_POINTS = "What are the main points? Summarize them in a few sentences."
PROMPT = PromptTemplate.from_template(
    "Answer the following question based only on the provided context:\n\n"
    "<context>\n{text}\n</context>\n\nQuestion: {about}"
)


def summarize(
    texts: Sequence[str], model: QuantizedLLM, *, about: str = MAIN_POINTS, summary_tokens: int | None = None
) -> list[str]:
    """Return one summary per text.

    Args:
        texts: what to summarize.
        model: a local model, whose plan says how long its context is.
        about: the question that the summary answers.
        summary_tokens: the most that a summary takes; None is an eighth of the context, at most 512.

    """
    if model.plan is None:
        raise ValueError("A server that runs already does not say how long its context is: take a local model.")
    context = model.plan.context_length
    chain = map_reduce(
        model,
        PROMPT.partial(about=about),
        context_length=context,
        summary_tokens=summary_tokens or min(512, context // 8),
    )
    # One text after another: the pieces of a long one fill the engine by themselves.
    return [chain.invoke(text) for text in texts]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the files and print their summaries."""
    parser = argparse.ArgumentParser(description="Summarize text files of any length with a local model.")
    parser.add_argument("files", nargs="+", help="text files in UTF-8; - is standard input")
    parser.add_argument("--about", default=MAIN_POINTS, help="the question that the summary answers")
    parser.add_argument("--model", default="demo", help="name or path of the model (default: demo)")
    parser.add_argument("--tokens", type=int, help="the most tokens of a summary")
    options = parser.parse_args(arguments)
    try:
        texts = [sys.stdin.read() if name == "-" else Path(name).read_text("utf-8") for name in options.files]
        model = get_llm(options.model, temperature=0)
        summaries = summarize(texts, model, about=options.about, summary_tokens=options.tokens)
    except (QlangchainError, OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    for name, text, summary in zip(options.files, texts, summaries, strict=True):
        print(f"{name}: {len(text)} characters, summarized in {len(summary)}\n{summary}\n")


if __name__ == "__main__":
    main()
