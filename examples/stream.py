"""Stream an answer as it is decoded, then read what it cost and which artifact gave it."""

from qlangchain import get_chat_model

chat = get_chat_model("demo", hardware="cpu", temperature=0)

chunks = []
for chunk in chat.stream("What is quantization?"):
    print(chunk.text, end="", flush=True)
    chunks.append(chunk)
print()

answer = sum(chunks[1:], chunks[0])
print(answer.usage_metadata["output_tokens"], "tokens from", answer.response_metadata["format"])
