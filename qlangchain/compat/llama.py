"""`Llama`: code written for llama-cpp-python's class of that name, on a supervised engine.

Beside the text it answers in the dictionaries of the OpenAI protocol, as there. What is different: threads may
share it, a crash of native code stays in the engine's process, and stop, grammars and tools hold.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from qlangchain.compat import tables
from qlangchain.compat.arguments import translate
from qlangchain.compat.llama_cpp import ChatLlamaCpp, LlamaCpp, LlamaCppEmbeddings
from qlangchain.errors import InvalidInputError
from qlangchain.models.base import Located
from qlangchain.models.messages import to_openai

Answer = dict[str, Any]

# llama-cpp-python's own, which are not langchain-community's.
_CALL: Final = {"max_tokens": 16, "temperature": 0.8, "top_p": 0.95, "min_p": 0.05, "top_k": 40, "repeat_penalty": 1.0}
_CHAT: Final = {**_CALL, "max_tokens": None, "temperature": 0.2}


class Llama:
    """A model in the manner of llama-cpp-python. It loads when it is first called.

    Example:
        >>> llm = Llama(model_path="./model.gguf", n_ctx=4096, n_threads=4)  # doctest: +SKIP
        >>> llm("What is GPTQ?", max_tokens=64)["choices"][0]["text"]  # doctest: +SKIP
        ' GPTQ is ...'

    """

    def __init__(self, model_path: str, **arguments: Any) -> None:
        """Take llama-cpp-python's arguments, and those of qlangchain's models that say where a model runs.

        Raises:
            UnsupportedRequestError: an argument is asked for that cannot be honoured, with what to do instead.
            InvalidInputError: an argument is not known.

        """
        own = set(Located.model_fields)
        ours = translate("Llama", tables.LLAMA, own, {"model_path": model_path, **arguments})
        self._pooling = ours.pop("pooling", None)
        self._place: dict[str, Any] = {name: value for name, value in ours.items() if name in own}
        # LangChain's cache must not turn sampling into repetition: nobody asked for LangChain here.
        self._text = LlamaCpp(**ours, cache=False)

    @cached_property
    def _chat(self) -> ChatLlamaCpp:
        return ChatLlamaCpp(**self._place, seed=self._text.seed, cache=False)

    @cached_property
    def _vectors(self) -> LlamaCppEmbeddings:
        return LlamaCppEmbeddings(**self._place, pooling=self._pooling)

    def __call__(self, prompt: str, **settings: Any) -> Any:
        """Do what `create_completion` does."""
        return self.create_completion(prompt, **settings)

    def create_completion(self, prompt: str, **settings: Any) -> Any:
        """Complete a text: a dictionary with `choices[0]["text"]` and `usage`, or with stream=True an iterator.

        Takes max_tokens (16 unless given), temperature, top_p, top_k, min_p, repeat_penalty, presence_penalty,
        frequency_penalty, stop, seed, echo and stream.
        """
        if not isinstance(prompt, str):
            raise InvalidInputError("The prompt is no string.", hint="Pass text; tokens cannot be sent.")
        settings = self._settings("Llama()", tables.CALL, _CALL, settings)
        echo, stream, stop = settings.pop("echo", False), settings.pop("stream", False), settings.pop("stop", None)
        lead = prompt if echo else ""
        if stream:
            return self._completion_stream(prompt, lead, _listed(stop), settings)
        result = self._text.generate([prompt], stop=_listed(stop), **settings)
        answer = result.generations[0][0]
        info = answer.generation_info or {}
        choice = _text_choice(lead + answer.text, info.get("finish_reason"))
        return {**self._head("cmpl", "text_completion"), "choices": [choice], "usage": _usage(info)}

    def _completion_stream(
        self, prompt: str, lead: str, stop: list[str] | None, settings: Mapping[str, Any]
    ) -> Iterator[Answer]:
        head = self._head("cmpl", "text_completion")
        if lead:
            yield {**head, "choices": [_text_choice(lead, None)]}
        for chunk in self._text._stream(prompt, stop, None, **settings):
            info = chunk.generation_info or {}
            if chunk.text or info.get("finish_reason"):
                yield {**head, "choices": [_text_choice(chunk.text, info.get("finish_reason"))]}

    def create_chat_completion(self, messages: Sequence[dict[str, Any]], **settings: Any) -> Any:
        """Answer messages: a dictionary with `choices[0]["message"]` and `usage`, or with stream=True an iterator.

        Takes what `create_completion` takes apart from echo (temperature 0.2 and no max_tokens unless given), and
        tools, tool_choice, response_format, logprobs and top_logprobs.
        """
        settings = self._settings("create_chat_completion", tables.CHAT_CALL, _CHAT, settings)
        stream, stop = settings.pop("stream", False), settings.pop("stop", None)
        if stream:
            return self._chat_stream(list(messages), _listed(stop), settings)
        reply = self._chat.invoke(list(messages), stop=_listed(stop), **settings)
        message: dict[str, Any] = {"role": "assistant", **to_openai([reply])[0]}
        if message.get("tool_calls"):
            message["content"] = message["content"] or None
        about = reply.response_metadata
        choice = {"index": 0, "message": message, "finish_reason": about.get("finish_reason")}
        usage = _usage({"usage_metadata": reply.usage_metadata})
        choice["logprobs"] = about.get("logprobs")
        return {**self._head("chatcmpl", "chat.completion"), "choices": [choice], "usage": usage}

    def _chat_stream(
        self, messages: list[dict[str, Any]], stop: list[str] | None, settings: Mapping[str, Any]
    ) -> Iterator[Answer]:
        head = self._head("chatcmpl", "chat.completion.chunk")
        delta: dict[str, Any] = {"role": "assistant"}
        for chunk in self._chat.stream(messages, stop=stop, **settings):
            if chunk.text:
                delta["content"] = chunk.text
            if chunk.tool_call_chunks:
                delta["tool_calls"] = [_call(call) for call in chunk.tool_call_chunks]
            finish = chunk.response_metadata.get("finish_reason")
            if delta or finish:
                yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
            delta = {}

    def embed(self, input: str | list[str], normalize: bool = False, truncate: bool = True) -> Any:
        """Return the vector of a text, or one for each text of a list.

        With `truncate`, as there, what is longer than the context is cut, and a warning says so.
        """
        vectors = self._vectors.model_copy(update={"normalize": normalize, "truncate": truncate})
        return vectors.embed_query(input) if isinstance(input, str) else vectors.embed_documents(input)

    def n_ctx(self) -> int | None:
        """Return the tokens of context that a request gets."""
        plan = self._text.plan
        return plan.context_length if plan else None

    @staticmethod
    def _settings(owner: str, known: Any, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        settings = translate(owner, known, (), {**defaults, **given})
        if settings.get("seed", 0) is None:
            del settings["seed"]  # the constructor's holds
        return settings

    def _head(self, kind: str, object: str) -> Answer:
        # The file is what was asked for; which artifact answered is in the plan of the LangChain models.
        return {
            "id": f"{kind}-{uuid.uuid4()}",
            "object": object,
            "created": int(time.time()),
            "model": self._text.model,
        }


def _listed(stop: Any) -> list[str] | None:
    return [stop] if isinstance(stop, str) else stop


def _text_choice(text: str, finish: str | None) -> Answer:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}


def _usage(info: Mapping[str, Any]) -> Answer:
    counts = info.get("usage_metadata") or {}
    asked, said = counts.get("input_tokens", 0), counts.get("output_tokens", 0)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _call(chunk: Mapping[str, Any]) -> Answer:
    function = {"name": chunk.get("name"), "arguments": chunk.get("args")}
    return {"index": chunk.get("index"), "id": chunk.get("id"), "type": "function", "function": function}
