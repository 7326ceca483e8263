"""What all models share (where they run), and what those share that generate (how they sample)."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import anyio.to_thread
from langchain_core.language_models import LangSmithParams
from langchain_core.runnables import RunnableConfig
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from qlangchain import pipeline
from qlangchain.errors import (
    EngineStartError,
    InvalidInputError,
    QlangchainError,
    QlangchainWarning,
    UnsupportedRequestError,
)
from qlangchain.models.errors import translated
from qlangchain.runtimes import remote
from qlangchain.runtimes.channel import Channel
from qlangchain.runtimes.preflight import TOKENIZE
from qlangchain.runtimes.protocol import Delta
from qlangchain.selection.plan import Plan
from qlangchain.types import Requirements

SAMPLING: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "seed",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)
MOST_AT_ONCE: Final = 32  # requests in flight for one batch; the engine queues what exceeds its slots
# Arguments that decide how an answer is come by, never what it says: they are no part of a cache key.
_NO_MATTER: Final = frozenset(("api_key", "preload", "timeout", "max_retries", "offline", "fallback"))


class Located(BaseModel):
    """Where a model comes from and where it runs. The object is a cheap value: engines live in the pool."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # the input may be the API key
    )

    model: str | None = Field(default=None, description="A hub id, an alias, a path, or 'demo'.")
    hardware: str = Field(default="auto", description="'auto', 'cpu', 'gpu' or 'hybrid'.")
    use_case: str = Field(default="personal", description="'production', 'research' or 'personal'.")
    precision_required: bool = Field(default=True, description="Whether accuracy comes before size.")
    context_length: int | None = Field(default=None, description="Tokens per request; None: the model's, at most 8192.")
    concurrency: int | None = Field(default=None, description="Requests decoded at once; None: up to 8 by memory.")
    method: str | None = Field(default=None, description="'GGUF'; None leaves it to the planner.")
    format: str | None = Field(default=None, description="Such as 'Q4_0'; None leaves it to the planner.")
    runtime: str | None = Field(default=None, description="A registered runtime; None: llama.cpp.")
    allow_produce: bool = Field(default=True, description="Whether an artifact may be made from full precision.")
    allow_download: bool = Field(default=True, description="Whether an artifact may be fetched from the hub.")
    threads: int | None = Field(default=None, description="Threads of the engine; None: the physical cores.")
    gpu_layers: int | None = Field(default=None, description="Layers on the GPU, -1 for all; None: by the planner.")
    engine_settings: dict[str, str | int | float | bool] | None = Field(
        default=None, description="vLLM's own settings by its own names, such as gpu_memory_utilization."
    )
    offline: bool | None = Field(default=None, description="Forbid the network; None: as QLANGCHAIN_OFFLINE says.")
    endpoint: str | None = Field(default=None, description="URL of an OpenAI-compatible server that runs already.")
    api_key: SecretStr | None = Field(default=None, description="The endpoint's key.")
    preload: bool = Field(default=False, description="Start the engine when the object is made, not by the first call.")
    timeout: float | None = Field(default=None, gt=0, description="Seconds for a whole answer; None: no limit.")
    max_retries: int = Field(default=2, ge=0, le=20, description="Tries again where nothing began.")

    _kind: ClassVar[str] = "chat"  # of the catalogue's default where no model is named
    _must_list: ClassVar[bool] = True  # an endpoint has to list its models
    _cap_context: ClassVar[bool] = False  # a context longer than the model's is refused

    @field_validator("model", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return os.fsdecode(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="after")
    def _check_words(self) -> Located:
        self._requirements()
        return self

    def model_post_init(self, context: Any, /) -> None:
        """Start the engine now where `preload` asks for it."""
        super().model_post_init(context)
        if self.preload:
            self.warm_up()

    def warm_up(self) -> None:
        """Make the artifact where needed and start the engine, so that the first call does not wait."""
        with translated():
            while True:
                try:
                    self._channel().start()
                    return
                except EngineStartError:
                    if not self._descend():
                        raise

    def _descend(self) -> bool:
        return False

    @property
    def plan(self) -> Plan | None:
        """The plan that calls follow, with its reasons; None for an endpoint, which somebody else planned."""
        with translated():
            return None if self.endpoint else self._prepared().plan

    def _requirements(self) -> Requirements:
        return pipeline.requirements(
            hardware=self.hardware,
            use_case=self.use_case,
            precision_required=self.precision_required,
            context_length=self.context_length,
            concurrency=self.concurrency,
            method=self.method,
            format=self.format,
            runtime=self.runtime,
            allow_produce=self.allow_produce,
            allow_download=self.allow_download,
            threads=self.threads,
            gpu_layers=self.gpu_layers,
            cap_context=self._cap_context,
            engine_settings=self.engine_settings,
        )

    def _prepared(self) -> pipeline.Prepared:
        prepared = pipeline.prepare(self._named(), self._requirements(), offline=self.offline)
        for notice in prepared.plan.notices:
            notify(notice)
        return prepared

    def _named(self) -> str:
        """The model that answers: the one that was named, or the default of this machine, with a notice."""
        if self.model is not None:
            return self.model
        chosen = pipeline.default_model(
            self._requirements().hardware, offline=pipeline.is_offline(self.offline), kind=self._kind
        )
        notify(chosen.notice)
        return chosen.model

    def _channel(self) -> Channel:
        if not self.endpoint:
            return self._prepared().channel
        key = self.api_key.get_secret_value() if self.api_key else None
        return Channel(endpoint=remote.connect(self.endpoint, model=self.model, api_key=key, must_list=self._must_list))


class Quantized(Located):
    """The arguments of every model that generates: where it runs, and how it samples."""

    temperature: float | None = Field(default=None, ge=0, description="0 is greedy; None: the engine's default.")
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, description="None: as many as the context has room for.")
    seed: int | None = Field(default=None)
    repeat_penalty: float | None = Field(default=None, gt=0)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    stop: list[str] | None = Field(default=None, description="Where to stop; a call's own stop replaces it.")
    fallback: bool = Field(default=True, description="Take the next-best plan where the engine cannot run the first.")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    async def _ready(self) -> None:
        """Prepare in a thread: planning reads files, and making an artifact takes seconds.

        LangChain asks for the identity of the model in the event loop, before the call itself.
        """
        if not self.endpoint:
            with contextlib.suppress(QlangchainError):  # the call itself will raise it
                await anyio.to_thread.run_sync(self._prepared)

    def _traced(self, params: LangSmithParams, stop: list[str] | None, kwargs: Mapping[str, Any]) -> LangSmithParams:
        """Fill in what LangSmith's traces show of the model."""
        params["ls_provider"] = "qlangchain"
        params["ls_model_name"] = str(kwargs.get("model") or self.model or "demo")
        for name, key in (("temperature", "ls_temperature"), ("max_tokens", "ls_max_tokens")):
            value = kwargs.get(name, getattr(self, name))
            if value is not None:
                params[key] = value  # type: ignore[literal-required]
        stops = self.stop if stop is None else stop
        if stops:
            params["ls_stop"] = stops
        return params

    def _deltas(self, path: str, content: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Delta]:
        with translated():
            while True:
                stream = self._channel().stream(
                    path, content, settings, timeout=self.timeout, max_retries=self.max_retries
                )
                try:
                    yield from stream
                    return
                except EngineStartError:  # nothing has been said yet
                    if not self._descend():
                        raise

    async def _adeltas(
        self, path: str, content: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> AsyncIterator[Delta]:
        with translated():
            while True:
                # Planning reads files and making an artifact takes seconds: not in the event loop.
                channel = await anyio.to_thread.run_sync(self._channel)
                stream = channel.astream(path, content, settings, timeout=self.timeout, max_retries=self.max_retries)
                try:
                    async with contextlib.aclosing(stream) as deltas:  # type: ignore[type-var]
                        async for delta in deltas:
                            yield delta
                    return
                except EngineStartError:
                    if not await anyio.to_thread.run_sync(self._descend):
                        raise

    def _descend(self) -> bool:
        """Take the next-best plan from now on, where falling back is allowed and there is one."""
        if not self.fallback or self.endpoint:
            return False
        return pipeline.descend(self._named(), self._requirements(), offline=self.offline)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the ids that the model's own tokenizer gives for a text, which its engine is asked for."""
        with translated():
            channel = self._channel()
            if not (channel.capabilities.tokenize or channel.capabilities.tokenizes_chat):
                raise UnsupportedRequestError("This server does not tokenize.", hint="Count with another tokenizer.")
            request: dict[str, Any] = {"content": text, "add_special": False, "parse_special": False}
            if channel.capabilities.tokenizes_chat:
                request = {"prompt": text, "add_special_tokens": False}
            answer = channel.call(TOKENIZE, lambda _: request, timeout=self.timeout, max_retries=self.max_retries)
            return [int(token) for token in answer["tokens"]]

    def _sampling(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of one call: the constructor's, replaced by the call's."""
        unknown = sorted(set(kwargs) - set(SAMPLING) - {"stream"})
        if unknown:
            raise UnsupportedRequestError(
                f"A call does not take {', '.join(unknown)}.", hint=f"It takes stop, {', '.join(SAMPLING)}."
            )
        own = {name: getattr(self, name) for name in SAMPLING}
        given = {name: value for name, value in kwargs.items() if name in SAMPLING}
        if given:  # the call's values are held to the same limits as the constructor's
            try:
                own.update(Quantized(**given).model_dump(include=set(given)))
            except ValidationError as error:
                wrong = error.errors()[0]
                name = wrong["loc"][0] if wrong["loc"] else "A setting"
                raise InvalidInputError(
                    f"{name}={wrong['input']!r} cannot be: {wrong['msg']}.", hint="The constructor has the same limits."
                ) from None
        return {**own, "stop": self.stop if stop is None else stop}

    def _metadata(self) -> dict[str, Any]:
        """What `response_metadata` says about the model behind an answer."""
        if self.endpoint:
            return {"model_provider": "qlangchain", "model_name": self.model or "default", "endpoint": self.endpoint}
        prepared = self._prepared()
        found = {
            "model_provider": "qlangchain",
            "model_name": prepared.artifact.model_name,
            "method": prepared.artifact.method.value,
            "format": prepared.artifact.format,
            "artifact": prepared.artifact.digest,
            "runtime": prepared.plan.runtime,
        }
        return {**found, "notices": list(prepared.plan.notices)} if prepared.plan.notices else found

    def _identity(self) -> dict[str, Any]:
        """What tells this model's answers from another's: the artifact and how it is run, and all settings."""
        own = self._arguments()
        if self.endpoint:
            return own
        try:
            prepared = self._prepared()
        except QlangchainError:
            return own  # the call itself will raise it
        return {
            **own,
            "artifact": prepared.artifact.digest,
            "engine": prepared.engine.version,
            "context_length": prepared.plan.context_length,
            "chat_template": prepared.template_hash,
        }

    def _arguments(self) -> dict[str, Any]:
        shown = {name: getattr(self, name) for name in Quantized.model_fields if name not in _NO_MATTER}
        return {name: value for name, value in shown.items() if value is not None}


def at_once(
    config: RunnableConfig | list[RunnableConfig] | None, inputs: Sequence[Any]
) -> RunnableConfig | list[RunnableConfig]:
    """Let a batch be in the engine as a whole: LangChain's own limit goes by this machine's cores."""
    limit = min(MOST_AT_ONCE, max(1, len(inputs)))
    if isinstance(config, list):
        return [{"max_concurrency": limit, **one} for one in config]
    return {"max_concurrency": limit, **(config or {})}


_told: set[str] = set()
_telling = threading.Lock()


def notify(notice: str) -> None:
    """Warn of something done differently from what was asked, once per process."""
    with _telling:
        if notice in _told:
            return
        _told.add(notice)
    warnings.warn(notice, QlangchainWarning, stacklevel=2)
