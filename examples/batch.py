"""Answer many prompts at once: the engine decodes as many together as it has slots, and keeps their order."""

import time

from qlangchain import get_llm

llm = get_llm("demo", hardware="cpu", temperature=0, concurrency=4, preload=True)
questions = [f"What is {word}?" for word in ("GPTQ", "AWQ", "GGUF", "Q4_0", "Q8_0", "Q5_1", "perplexity", "vLLM")]

start = time.perf_counter()
answers = llm.batch(questions)
for question, answer in zip(questions, answers, strict=True):
    print(f"{question} {answer}")
print(f"{len(answers)} answers in {time.perf_counter() - start:.1f} s")
