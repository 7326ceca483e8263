"""One model in memory, and one generation at a time: what a request may ask for, and what comes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from qlangchain.runtimes.transformers_server.text import OPEN, Detokenizer, StopStrings, Thoughts

# For a tokenizer without a chat template; llama.cpp takes the same.
_CHATML: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class TooLongError(ValueError):
    """The prompt does not fit the context."""

    def __init__(self, asked: int, context: int) -> None:
        super().__init__(f"the prompt takes {asked} tokens, the context has {context}")
        self.asked, self.context = asked, context


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate. `grammar` is llguidance's; `top_logprobs` None means that none are asked for."""

    prompt: Sequence[int]
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    grammar: str | None = None
    top_logprobs: int | None = None
    thinks: bool = False
    splits_thoughts: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that was said, or with `finish` the end: "stop" or "length"."""

    text: str = ""
    reasoning: str = ""
    logprobs: tuple[Mapping[str, Any], ...] = ()
    finish: str | None = None
    tokens: int = 0


@dataclass(slots=True)
class _Logprobs:
    """Notes the log-probabilities that the model gave, before temperature and constraints change them."""

    top: int
    rows: list[Any] = field(default_factory=list)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.rows.append(scores[0].float().log_softmax(-1))
        return scores


class Model:
    """A causal language model from a directory of safetensors, quantized or not."""

    def __init__(self, directory: str, *, context_length: int, threads: int) -> None:
        """Load it; what is in the directory decides the data type and the kernels."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        self.context_length = context_length
        # With a GPU, accelerate places the weights; without one nothing has to be placed.
        placed = {"device_map": "cuda"} if torch.cuda.is_available() else {}
        models: Any = AutoModelForCausalLM
        tokenizers: Any = AutoTokenizer
        self.model: Any = models.from_pretrained(
            directory,
            dtype="auto",
            **placed,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        ).eval()
        self.tokenizer: Any = tokenizers.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        template = Path(directory) / "chat_template.jinja"
        if self.tokenizer.chat_template is None:
            self.tokenizer.chat_template = template.read_text(encoding="utf-8") if template.is_file() else _CHATML
        self._turn = threading.Lock()
        self._constraints: Any = None

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any, options: Mapping[str, Any]) -> str:
        """Return the messages in the model's chat template. Transformers renders it in jinja2's immutable sandbox."""
        text = self.tokenizer.apply_chat_template(
            list(messages), tools=tools or None, tokenize=False, add_generation_prompt=True, **options
        )
        return str(text)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text; `special` adds what the tokenizer puts around a text of its own accord."""
        return [int(id) for id in self.tokenizer.encode(text, add_special_tokens=special)]

    def admit(self, prompt: Sequence[int]) -> None:
        """Raise TooLongError for a prompt that leaves no room for one more token."""
        if len(prompt) >= self.context_length:
            raise TooLongError(len(prompt), self.context_length)

    def generate(self, request: Request, cancel: threading.Event) -> Iterator[Piece]:
        """Yield what the model says, as it says it, and an end with the number of tokens.

        The generation runs in a thread of its own, one at a time; `cancel` ends it at the next token.
        """
        self.admit(request.prompt)
        said: SimpleQueue[Any] = SimpleQueue()
        logprobs = _Logprobs(request.top_logprobs) if request.top_logprobs is not None else None
        worker = threading.Thread(target=self._run, args=(request, cancel, said, logprobs), daemon=True)
        worker.start()
        try:
            yield from self._pieces(request, said, cancel, logprobs)
        finally:
            cancel.set()  # whoever stops listening, or has found a stop string, needs no more tokens
            worker.join()

    def _run(
        self, request: Request, cancel: threading.Event, said: SimpleQueue[Any], logprobs: _Logprobs | None
    ) -> None:
        try:
            with self._turn:
                if not cancel.is_set():
                    self._generate(request, cancel, said.put, logprobs)
            said.put(None)
        except Exception as error:  # it is raised where the request is answered
            said.put(error)

    def _generate(
        self, request: Request, cancel: threading.Event, put: Callable[[int], None], logprobs: _Logprobs | None
    ) -> None:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        room = self.context_length - len(request.prompt)
        sampled = request.temperature > 0
        if request.seed is not None:
            torch.manual_seed(request.seed)
        own = self.model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        settings: dict[str, Any] = {"temperature": request.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}
        for name in ("top_p", "top_k", "min_p"):
            value = getattr(request, name)
            if sampled and value is not None:
                settings[name] = value
        config: Any = GenerationConfig
        pad = self.tokenizer.pad_token_id
        processors: list[Any] = [logprobs] if logprobs else []
        if request.grammar is not None:
            processors.append(self._constraint(request))
        ids = torch.tensor([list(request.prompt)], device=self.model.device)
        with torch.inference_mode():
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config(
                    max_new_tokens=min(request.max_tokens or room, room),
                    do_sample=sampled,
                    eos_token_id=ends,
                    pad_token_id=pad if pad is not None else 0,
                    use_cache=True,
                    **settings,
                ),
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([lambda ids, scores, **_: cancel.is_set()]),
                streamer=_Streamer(put),
            )

    def _constraint(self, request: Request) -> Any:
        from qlangchain.runtimes.transformers_server.constraint import Constraints

        if self._constraints is None:
            self._constraints = Constraints(self.tokenizer, self.model.config.get_text_config().vocab_size)
        return self._constraints.processor(request.grammar)

    def _pieces(
        self, request: Request, said: SimpleQueue[Any], cancel: threading.Event, logprobs: _Logprobs | None
    ) -> Iterator[Piece]:
        detokenizer = Detokenizer(lambda ids: str(self.tokenizer.decode(ids, skip_special_tokens=True)))
        stops, thoughts = StopStrings(request.stop), Thoughts(thinking=request.thinks)
        limit = min(request.max_tokens or self.context_length, self.context_length - len(request.prompt))
        count, ended = 0, False

        def piece(text: str, *, last: bool = False, noted: tuple[Mapping[str, Any], ...] = ()) -> Piece | None:
            reasoning = ""
            if request.splits_thoughts:
                reasoning, text = thoughts.add(text)
                if last:
                    more = thoughts.rest()
                    reasoning, text = reasoning + more[0], text + more[1]
            return Piece(text, reasoning, noted) if text or reasoning or noted else None

        while (token := said.get()) is not None:
            if isinstance(token, Exception):
                raise token
            count += 1
            noted = (self._noted(token, logprobs, count - 1),) if logprobs else ()
            ended = token in self._ends
            if not ended and (found := piece(stops.add(detokenizer.add(token)), noted=noted)):
                yield found
            if stops.found:
                cancel.set()
        text = stops.add(detokenizer.rest())
        if found := piece(text + stops.rest(), last=True):
            yield found
        finished = ended or stops.found or count < limit
        yield Piece(finish="stop" if finished else "length", tokens=count)

    @property
    def _ends(self) -> set[int]:
        own = self.model.generation_config.eos_token_id
        ids = own if isinstance(own, list) else [own]
        return {id for id in (*ids, self.tokenizer.eos_token_id) if id is not None}

    def _noted(self, token: int, logprobs: _Logprobs, index: int) -> Mapping[str, Any]:
        row = logprobs.rows[index]
        best = row.topk(min(logprobs.top, row.numel())) if logprobs.top else None
        top = [] if best is None else zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {**self._token(token, float(row[token])), "top_logprobs": [self._token(id, p) for id, p in top]}

    def _token(self, id: int, logprob: float) -> dict[str, Any]:
        text = str(self.tokenizer.decode([id]))
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class _Streamer:
    """What `generate` hands its tokens to: the prompt first, then each new one."""

    def __init__(self, put: Callable[[int], None]) -> None:
        self._put, self._is_prompt = put, True

    def put(self, value: Any) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        for token in value.flatten().tolist():
            self._put(int(token))

    def end(self) -> None:
        """Do nothing: the thread says when it is done."""


def thinks(prompt: str) -> bool:
    """Whether a rendered prompt ends inside a thought."""
    return prompt.rstrip().endswith(OPEN)
