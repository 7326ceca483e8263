"""Async calls never block the event loop, not even while a model loads: a clock goes on ticking beside them."""

import asyncio

from qlangchain import get_chat_model

chat = get_chat_model("demo", hardware="cpu", temperature=0)


async def main() -> None:
    answers = asyncio.gather(*(chat.ainvoke(f"What is {word}?") for word in ("GPTQ", "AWQ", "GGUF")))
    ticks = 0
    while not answers.done():
        await asyncio.sleep(0.01)
        ticks += 1
    for answer in await answers:
        print(answer.text)
    print(f"The loop was free {ticks} times meanwhile.")


asyncio.run(main())
