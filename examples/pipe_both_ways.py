"""A text model composes with prompts on both sides: `prompt | llm`, `llm | prompt`, and longer chains."""

from langchain_core.prompts import PromptTemplate

from qlangchain import get_llm

llm = get_llm("demo", hardware="cpu", temperature=0)
ask = PromptTemplate.from_template("What is {word}?")
report = PromptTemplate.from_template("The model says: {text}")

print((ask | llm).invoke({"word": "GPTQ"}))
print((llm | report).invoke("What is AWQ?").text)
print((ask | llm | report).invoke({"word": "GGUF"}).text)
