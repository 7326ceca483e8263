"""Ask a server first, and answer on this machine where it cannot be reached."""

from langchain_core.exceptions import ModelError

from qlangchain import get_chat_model

server = get_chat_model(endpoint="http://127.0.0.1:9/v1", api_key="none", max_retries=0)
local = get_chat_model("demo", hardware="cpu", temperature=0)

# Errors of the model fall back, mistakes in the program do not.
chat = server.with_fallbacks([local], exceptions_to_handle=(ModelError,))
answer = chat.invoke("What is GGUF?")
print(answer.text)
print("answered by", answer.response_metadata["model_name"])
