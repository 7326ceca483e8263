"""Draft an answer with a small, fast model and refine it with a more exact one: `get_llm() | prompt | get_llm()`.

    python recipes/draft_refine.py "What is GPTQ?"
    python recipes/draft_refine.py "What is GPTQ?" --draft small.gguf --refine large.gguf

By default both are the demo model: quantized to 4 bits for the draft and to 8 bits for the refinement.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable, RunnableParallel, RunnablePassthrough

from qlangchain import QuantizedLLM, get_llm
from qlangchain.errors import QlangchainError

# A text model on the left of a prompt fills its only variable; the question is filled in before.
REFINE = PromptTemplate.from_template("Context:\n{draft}\n\nQuestion: {question}")


@dataclass(frozen=True)
class Refined:
    """An answer and the draft that it was made from."""

    draft: str
    answer: str


def draft_and_refine(question: str, draft: QuantizedLLM, refine: QuantizedLLM) -> Refined:
    """Answer a question with `draft`, and let `refine` work the answer over.

    Only the answer is needed? Then the chain is `draft | REFINE.partial(question=question) | refine`.
    """
    refinement: Runnable[Any, str] = REFINE.partial(question=question) | refine
    chain = draft | RunnableParallel(draft=RunnablePassthrough(), answer=refinement)
    return Refined(**chain.invoke(question))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the draft and what became of it."""
    parser = argparse.ArgumentParser(description="Draft an answer with one local model and refine it with another.")
    parser.add_argument("question")
    parser.add_argument("--draft", default="demo", help="name or path of the model that drafts (default: demo)")
    parser.add_argument("--draft-format", help="its format (default: Q4_0 for the demo model, else by the planner)")
    parser.add_argument("--refine", default="demo", help="name or path of the model that refines (default: demo)")
    parser.add_argument("--refine-format", help="its format (default: Q8_0 for the demo model, else by the planner)")
    options = parser.parse_args(arguments)
    formats = {
        "draft": options.draft_format or ("Q4_0" if options.draft == "demo" else None),
        "refine": options.refine_format or ("Q8_0" if options.refine == "demo" else None),
    }
    try:
        draft = get_llm(options.draft, format=formats["draft"], temperature=0)
        refine = get_llm(options.refine, format=formats["refine"], temperature=0)
        refined = draft_and_refine(options.question, draft, refine)
    except QlangchainError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"Draft:\n{refined.draft}\n\nRefined:\n{refined.answer}")


if __name__ == "__main__":
    main()
