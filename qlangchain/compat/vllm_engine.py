"""`LLM` and `SamplingParams`: code written for vLLM's classes of these names, on a supervised engine or a server.

The outputs are vLLM's: a list of `RequestOutput`, in the order of the prompts, with `outputs[0].text`. What is
different: vLLM is a process of its own, so this program may also hold no GPU memory, use threads, and fork.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from qlangchain.compat import tables
from qlangchain.compat.arguments import translate
from qlangchain.compat.vllm import VLLM
from qlangchain.errors import InvalidInputError, UnsupportedRequestError
from qlangchain.models import tools as tools_module
from qlangchain.models.base import MOST_AT_ONCE, Located, Quantized
from qlangchain.runtimes.protocol import CHAT, COMPLETION

# vLLM's own: those that differ from the defaults of the engine behind it, and those that change nothing.
_DEFAULTS: Final = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 16, "n": 1}
_IDLE: Final = {"top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
_MOST_ANSWERS: Final = 128  # to one prompt


class SamplingParams:
    """How to sample, with vLLM's arguments and defaults (temperature 1, 16 tokens).

    Raises:
        UnsupportedRequestError: an argument is asked for that cannot be honoured, with what to do instead.
        InvalidInputError: an argument is not known.
        ValueError: a value cannot be.

    Example:
        >>> SamplingParams(max_tokens=512).max_tokens
        512

    """

    def __init__(self, **given: Any) -> None:
        ours = translate("SamplingParams", tables.SAMPLING_PARAMS, (), {**_DEFAULTS, **given})
        self._given = {**_DEFAULTS, **given}
        self._n = ours.pop("n")
        if not (isinstance(self._n, int) and 1 <= self._n <= _MOST_ANSWERS):
            raise InvalidInputError(f"n={self._n!r} cannot be.", hint=f"Pass 1 to {_MOST_ANSWERS}.")
        self._stop = ours.pop("stop", None)
        # Values that leave everything as it is are not sent: a server that does not know them need not be asked.
        idle = {**_IDLE, "repeat_penalty": 1.0}
        self._sent = {name: value for name, value in ours.items() if name not in idle or value != idle[name]}
        Quantized(**self._sent, stop=self._stop)  # holds the values to their limits

    def __getattr__(self, name: str) -> Any:
        given = self.__dict__.get("_given", {})
        if name in given or name in _IDLE:
            return given.get(name, _IDLE.get(name))
        if name in tables.SAMPLING_PARAMS:
            neutral = tables.SAMPLING_PARAMS[name].neutral
            return neutral[-1] if neutral else None
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplingParams) and self._given == other._given

    __hash__ = None  # type: ignore[assignment]  # as in vLLM

    def __repr__(self) -> str:
        return f"SamplingParams({', '.join(f'{name}={value!r}' for name, value in self._given.items())})"

    def requests(self) -> list[dict[str, Any]]:
        """The settings of each of the n requests that it stands for, in qlangchain's names."""
        seed = self._sent.get("seed")
        return [self._sent if seed is None else {**self._sent, "seed": seed + index} for index in range(self._n)]

    @property
    def stops(self) -> list[str] | None:
        """Where to stop."""
        return [self._stop] if isinstance(self._stop, str) else self._stop


@dataclass(slots=True)
class CompletionOutput:
    """One answer. `token_ids` is empty where the engine does not tell them (llama.cpp)."""

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    cumulative_logprob: float | None = None
    logprobs: Any = None
    stop_reason: int | str | None = None
    lora_request: Any = None

    def finished(self) -> bool:
        """Whether the answer is complete, which it always is."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """The answers to one prompt. `prompt` is None for messages, which the engine renders."""

    request_id: str
    prompt: str | None
    outputs: list[CompletionOutput]
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: Any = None
    finished: bool = True
    metrics: Any = None
    lora_request: Any = None


class _Served(VLLM):
    """The model behind an `LLM`."""

    _owner: ClassVar[str] = "LLM"


class LLM:
    """A model in the manner of vLLM. It loads when it is first asked, and may be shared by threads.

    With endpoint=, or QLANGCHAIN_VLLM_ENDPOINT set, it speaks to that server; else see `VLLM`.

    Raises:
        MissingDependencyError: the weights are for vLLM alone, and there is neither an environment nor a server.
        UnsupportedRequestError: an argument is asked for that cannot be honoured, with what to do instead.
        InvalidInputError: an argument is not known.

    Example:
        >>> llm = LLM(model="./Llama-2-7B-Chat-AWQ", quantization="awq", dtype="half")  # doctest: +SKIP
        >>> llm.generate(["Hello"], SamplingParams(max_tokens=512))[0].outputs[0].text  # doctest: +SKIP
        ', ...'

    """

    def __init__(self, model: str | None = None, **arguments: Any) -> None:
        given = {"model": model, **arguments}
        ours = translate("LLM", tables.LLM, Located.model_fields, given, endpoint=bool(given.get("endpoint")))
        seed, mode = ours.pop("engine_seed", None), ours.pop("tokenizer_mode", None)
        if not ours.get("endpoint") and (seed or mode not in (None, "auto")):
            own = {"seed": seed, "tokenizer_mode": mode}
            ours["engine_settings"] = {**(ours.get("engine_settings") or {}), **{k: v for k, v in own.items() if v}}
        # LangChain's cache must not turn sampling into repetition: nobody asked for LangChain here.
        self._model = _Served(**ours, cache=False)
        self._numbers = itertools.count()

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: object = True,
        lora_request: object = None,
        priority: object = None,
    ) -> list[RequestOutput]:
        """Complete each prompt (a text, {"prompt": text}, or a list of them), all of them in the engine at once.

        A list of `sampling_params` goes with the prompts one by one. No progress bar is shown.
        """
        _nothing("generate", lora_request=lora_request, priority=priority)
        texts = [_text(one) for one in ([prompts] if isinstance(prompts, str | Mapping) else list(prompts))]
        return self._answer([(COMPLETION, {"prompt": text}, text) for text in texts], sampling_params)

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: object = True,
        lora_request: object = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or a list of conversations, in the model's own chat template.

        Messages are dictionaries with role and content. Tools are shown to the model; calls are left
        in the text as it writes them, as vLLM's `chat` does.
        """
        _nothing("chat", lora_request=lora_request, chat_template=chat_template)
        if not add_generation_prompt or continue_final_message:
            raise UnsupportedRequestError("chat() begins a new answer.", hint="Use generate() with a text to go on.")
        conversations = list(messages) if messages and isinstance(messages[0], list | tuple) else [messages]
        more = {"tools": tools_module.to_openai(tools), "tool_choice": "none"} if tools else {}
        asks = [(CHAT, {"messages": [_message(m) for m in one], **more}, None) for one in conversations]
        return self._answer(asks, sampling_params)

    def _answer(
        self,
        asks: Sequence[tuple[str, dict[str, Any], str | None]],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[RequestOutput]:
        if isinstance(params, Sequence):
            if len(params) != len(asks):
                raise InvalidInputError(
                    f"There are {len(asks)} prompts and {len(params)} sampling_params.",
                    hint="Pass one for each, or one.",
                )
            chosen = list(params)
        else:
            chosen = [params or SamplingParams()] * len(asks)
        outputs = [RequestOutput(str(next(self._numbers)), prompt, []) for _, _, prompt in asks]
        with ThreadPoolExecutor(min(MOST_AT_ONCE, max(1, sum(one.n for one in chosen)))) as threads:
            running = [
                (output, threads.submit(self._one, path, content, each.stops, sent, index))
                for output, (path, content, _), each in zip(outputs, asks, chosen, strict=True)
                for index, sent in enumerate(each.requests())
            ]
            for output, answer in running:
                output.outputs.append(answer.result())
        return outputs

    def _one(
        self, path: str, content: dict[str, Any], stop: list[str] | None, sent: Mapping[str, Any], index: int
    ) -> CompletionOutput:
        model = self._model
        sampling = {**model._sampling(stop, sent), "max_tokens": sent.get("max_tokens")}
        if model._channel().capabilities.tokenizes_chat:
            content = {**content, "return_token_ids": True}
        deltas = list(model._deltas(path, content, sampling))
        return CompletionOutput(
            index=index,
            text="".join(delta.text for delta in deltas),
            token_ids=tuple(token for delta in deltas for token in delta.token_ids),
            finish_reason=next((delta.finish_reason for delta in deltas if delta.finish_reason), None),
        )


def _text(prompt: Any) -> str:
    text = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
    if not isinstance(text, str):
        raise UnsupportedRequestError("A prompt is no text; tokens and images cannot be sent.", hint="Pass strings.")
    return text


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidInputError(
            f"{message!r} is no message.", hint='Pass dictionaries such as {"role": "user", "content": "Hello"}.'
        )
    return dict(message)


def _nothing(owner: str, **given: object) -> None:
    asked = [name for name, value in given.items() if value is not None]
    if asked:
        raise UnsupportedRequestError(f"{owner}() cannot honour {', '.join(asked)}.", hint="Leave it out.")
