"""Let a chat model call a function, and give it the result."""

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from qlangchain import get_chat_model


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


chat = get_chat_model("demo", hardware="cpu", temperature=0).bind_tools([multiply])
messages = [HumanMessage("What is 27 times 14?")]

call = chat.invoke(messages)
messages.append(call)
for request in call.tool_calls:
    print("The model calls", request["name"], request["args"])
    messages.append(multiply.invoke(request))
print(chat.invoke(messages).text)
