"""Code for langchain-community and llama-cpp-python with one import changed, beside what it is in qlangchain's words.

Run it with the path of a GGUF file, or without for the embedded demo model: python examples/migrate.py model.gguf
"""

from __future__ import annotations

import sys

from langchain_core.prompts import PromptTemplate

from qlangchain import get_llm

# before: from langchain_community.llms import LlamaCpp
# before: from llama_cpp import Llama
from qlangchain.compat import Llama, LlamaCpp


def main(model_path: str) -> None:
    # LangChain: the old arguments, the old class name, and a chain that need not change.
    old = LlamaCpp(model_path=model_path, n_ctx=2048, n_threads=2, temperature=0, max_tokens=32)
    prompt = PromptTemplate.from_template("Question: {question}\nAnswer: ")
    print("LlamaCpp     ", repr((prompt | old).invoke({"question": "What is GPTQ?"})))

    # The same in qlangchain's words.
    new = get_llm(
        model_path,
        raw=True,
        context_length=2048,
        threads=2,
        temperature=0,
        top_p=0.95,
        top_k=40,
        repeat_penalty=1.1,
        max_tokens=32,
    )
    print("get_llm      ", repr((prompt | new).invoke({"question": "What is GPTQ?"})))

    # And what the model was trained for: its chat template.
    print("with template", repr(get_llm(model_path, temperature=0, max_tokens=32).invoke("What is GPTQ?")))

    # llama-cpp-python: the same dictionaries come back.
    raw = Llama(model_path=model_path, n_ctx=2048, n_threads=2)
    output = raw("The Q in GPTQ stands for", max_tokens=16, temperature=0)
    print("Llama        ", repr(output["choices"][0]["text"]), output["usage"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo")
