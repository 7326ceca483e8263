"""`get_llm`, `get_chat_model` and `get_embeddings`: the plain way to make a model object."""

from __future__ import annotations

from os import PathLike
from typing import Any

from qlangchain.models.chat import ChatQuantized
from qlangchain.models.embeddings import QuantizedEmbeddings
from qlangchain.models.llm import QuantizedLLM


def get_llm(model: str | PathLike[str] | None = None, **arguments: Any) -> QuantizedLLM:
    """Make a LangChain text model that composes with prompts on both sides.

    Args:
        model: a hub id such as "Qwen/Qwen3-4B" (":Q4_K_M" and "@REVISION" may stand behind it), an alias of the
            catalogue, the path of a GGUF file or of a model directory, or "demo". None takes the catalogue's default
            for this machine where the store or the hub has it, else the embedded demo model, and says so.
        **arguments: those of `plan` (hardware, use_case, precision_required, context_length, concurrency,
            method, format, runtime, allow_produce, allow_download, threads, gpu_layers, offline), of sampling
            (temperature, top_p, top_k, min_p, max_tokens, seed, stop, ...), endpoint= and api_key= for a server that
            runs already, timeout, max_retries, preload, raw, and whatever LangChain's BaseLLM takes.

    Nothing is loaded before the first call, unless `preload=True`.

    Example:
        >>> chain = PromptTemplate.from_template("What is {word}?") | get_llm("demo")  # doctest: +SKIP

    """
    return QuantizedLLM(model=model, **arguments)


def get_chat_model(model: str | PathLike[str] | None = None, **arguments: Any) -> ChatQuantized:
    """Return a LangChain chat model. It takes what `get_llm` takes, apart from raw."""
    return ChatQuantized(model=model, **arguments)


def get_embeddings(model: str | PathLike[str] | None = None, **arguments: Any) -> QuantizedEmbeddings:
    """Return LangChain embeddings: one vector per text.

    Args:
        model: as for `get_llm`. Take a model that was trained for embeddings; one that was trained to generate
            gives vectors too, which retrieve badly.
        **arguments: those of `plan`, endpoint= and api_key=, timeout, max_retries, preload, and pooling ("mean",
            "cls", "last"; None is the model's own), normalize, truncate and batch_size.

    Example:
        >>> vectors = get_embeddings("demo").embed_documents(["What is GPTQ?", "What is AWQ?"])  # doctest: +SKIP

    """
    return QuantizedEmbeddings(model=model, **arguments)
