"""`LlamaCpp`, `ChatLlamaCpp` and `LlamaCppEmbeddings`: langchain-community's arguments, qlangchain's models."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from qlangchain.compat import tables
from qlangchain.compat.arguments import Table, translate
from qlangchain.errors import InvalidInputError
from qlangchain.models.base import Located, Quantized
from qlangchain.models.chat import ChatQuantized
from qlangchain.models.embeddings import QuantizedEmbeddings
from qlangchain.models.llm import QuantizedLLM


class _Translated(Located):
    """Takes the arguments of another class: `_known` says what becomes of each."""

    _cap_context: ClassVar[bool] = True  # llama.cpp accepts a longer context, with a line in its log
    _known: ClassVar[Table] = {}

    def __init__(self, **given: Any) -> None:
        # Not a validator of pydantic's, which would wrap our errors and lose their hints.
        owner = type(self).__name__
        fields = type(self).model_fields
        ours = translate(owner, self._known, fields, given, endpoint=bool(given.get("endpoint")))
        if not (ours.get("model") or ours.get("endpoint")):
            needed = "model_path" if "model_path" in self._known else "model"
            raise InvalidInputError(f"{owner} needs {needed}=.", hint="Pass the path of a GGUF file.")
        super().__init__(**self._completed(ours))

    @classmethod
    def _completed(cls, ours: dict[str, Any]) -> dict[str, Any]:
        """Add what only this class knows to our arguments."""
        return ours

    @property
    def model_path(self) -> str | None:
        """The model, under the name that it has there."""
        return self.model


class _Sampled(_Translated, Quantized):
    """The sampling defaults of langchain-community's classes, so that answers stay what they were."""

    temperature: float | None = Field(default=0.8, ge=0)
    top_p: float | None = Field(default=0.95, ge=0, le=1)
    top_k: int | None = Field(default=40, ge=0)
    repeat_penalty: float | None = Field(default=1.1, gt=0)
    max_tokens: int | None = Field(default=256, ge=1)


class LlamaCpp(_Sampled, QuantizedLLM):
    """A text model with the arguments of langchain-community's LlamaCpp. The prompt goes to the model as it is.

    Arguments of `QuantizedLLM` may stand beside them.

    Raises:
        UnsupportedRequestError: an argument is asked for that cannot be honoured, with what to do instead.
        InvalidInputError: an argument is not known, or the model is missing.

    Example:
        >>> LlamaCpp(model_path="./model.gguf", n_ctx=2048, n_threads=4).invoke("Once upon a time")  # doctest: +SKIP
        ' there was ...'

    """

    _known: ClassVar[Table] = tables.LLAMA_CPP

    raw: bool = Field(default=True, description="Send the text as it is, without the model's chat template.")
    streaming: bool = Field(default=True, description="Let invoke() tell callbacks of each token as it comes.")


class ChatLlamaCpp(_Sampled, ChatQuantized):
    """A chat model with the arguments of langchain-community's ChatLlamaCpp; see `LlamaCpp` for its errors."""

    _known: ClassVar[Table] = tables.CHAT_LLAMA_CPP

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"streaming": True, **given})  # LangChain asks whether it was set, not for its default


class LlamaCppEmbeddings(_Translated, QuantizedEmbeddings):
    """Embeddings with the arguments of langchain-community's LlamaCppEmbeddings: one vector for each text.

    Vectors are as long as the model makes them, as there, so that an index of old vectors stays valid.
    """

    _known: ClassVar[Table] = tables.EMBEDDINGS

    normalize: bool = Field(default=False, description="Vectors of length 1. False: as the model gives them.")
