"""Get values instead of text: the engine's grammar allows nothing that does not fit the schema."""

from typing import Literal

from pydantic import BaseModel, Field

from qlangchain import get_chat_model


class Choice(BaseModel):
    """The quantization that suits a machine."""

    method: Literal["GGUF", "GPTQ", "AWQ"]
    bits: int = Field(ge=2, le=8)
    needs_gpu: bool


chat = get_chat_model("demo", hardware="cpu", temperature=0)
choice = chat.with_structured_output(Choice).invoke("Which quantization suits a laptop without a GPU?")
print(choice)
print(f"{choice.method} with {choice.bits} bits")
