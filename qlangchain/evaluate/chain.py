"""`evaluate`: does a chain still answer the same when its model is quantized further, or less?"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel

from qlangchain import pipeline
from qlangchain.artifacts.source import Source
from qlangchain.errors import CancelledError, InvalidInputError, QlangchainError
from qlangchain.evaluate.agreement import Agreement, agree
from qlangchain.evaluate.formats import Wanted, parse, parse_all
from qlangchain.evaluate.making import Place, Tell, obtain
from qlangchain.evaluate.rewriting import exchanged, models_in
from qlangchain.evaluate.tables import NONE, Table
from qlangchain.models.base import Quantized
from qlangchain.toolchains.worker import Progress
from qlangchain.types import Method

AS_IT_IS: Final = "as planned"
Build = Callable[[Any], Runnable[Any, Any]]


@dataclass(frozen=True, slots=True)
class ChainRow:
    """The chain in one format: how far it agrees with the reference, and the mean seconds that an input took."""

    format: str
    agreement: Agreement | None = None
    seconds: float | None = None
    answers: tuple[str | None, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A chain on one's own prompts in several formats; `reference` names the format that the others are held to."""

    reference: str
    reference_answers: tuple[str | None, ...]
    rows: tuple[ChainRow, ...]

    def to_table(self) -> Table:
        """The rows as a table of text."""
        right = any(row.agreement and row.agreement.right is not None for row in self.rows)
        cells = []
        for row in self.rows:
            given = row.agreement
            shares = [given and given.same, given and given.prefix, *([given and given.right] if right else [])]
            seconds = NONE if row.seconds is None else f"{row.seconds:.2f}"
            cells.append((row.format, *(NONE if one is None else f"{one:.1%}" for one in shares), seconds))
        columns = ("format", "same answer", "common beginning", *(("wanted answer",) if right else ()), "s per input")
        title = f"{len(self.reference_answers)} inputs, against {self.reference}"
        return Table(title, columns, tuple(cells))

    def to_markdown(self) -> str:
        """The table, and the reasons for what is missing."""
        table = self.to_table()
        missing = "".join(f"- {row.format}: {' '.join(one.split())}\n" for row in self.rows for one in row.problems)
        return f"### {table.title}\n\n{table.markdown()}" + (f"\n{missing}" if missing else "")

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return asdict(self)

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)


def evaluate(
    chain: Runnable[Any, Any] | Build,
    prompts: Sequence[Any],
    *,
    formats: str | Iterable[str] | None = None,
    reference: str | None = None,
    wanted: Sequence[str | None] | None = None,
    model: Quantized | None = None,
    greedy: bool = True,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> Evaluation:
    """Run a chain on its inputs with its model in several formats, and say how often the answers stay the same.

    Every qlangchain model inside the chain is exchanged for the same model in another format; the chain that was
    passed stays as it is. A format that cannot be made or run is a row with the reason.

    Args:
        chain: a model, or any Runnable around models; or a function that makes one from `model`.
        prompts: the chain's inputs (texts, dicts, messages), not to be changed by the chain.
        formats: such as "Q4_0,Q8_0,awq-4"; None is the chain just as it is.
        reference: the format that answers are held to; None is the weights at full precision, or where there are
            none the most precise file that is there.
        wanted: the right answer to each prompt, where it is known; None for those where it is not.
        model: what a function is called with.
        greedy: whether models are set to temperature 0; sampled answers differ without any quantization.
        progress: called with what is being done and how far it is.
        cancel: set it to stop before the next input.

    Raises:
        InvalidInputError: no qlangchain model in the chain, one hidden in a function, one behind an endpoint, no
            prompts, or an unknown format.
        QlangchainError: the reference itself cannot be run.
        CancelledError: `cancel` was set.

    """
    inputs = list(prompts) if not isinstance(prompts, str) else [prompts]
    if not inputs:
        raise InvalidInputError("There are no prompts.", hint="Pass the inputs of the chain, such as ['...'].")
    if wanted is not None and len(wanted) != len(inputs):
        raise InvalidInputError(
            f"There are {len(inputs)} prompts and {len(wanted)} wanted answers.", hint="One for each."
        )
    asked: list[Wanted | None] = [None] if formats is None else list(parse_all(formats))
    held = parse(reference) if reference else None
    found = models_in(chain) if isinstance(chain, Runnable) else [model] if isinstance(model, Quantized) else []
    _refuse(chain, found)
    work = _Work(chain, found, inputs, greedy, progress, cancel)
    basis = held or _most_precise(found[0])
    answers, seconds, failure = work.answers(basis)
    if all(answer is None for answer in answers):
        raise failure or InvalidInputError("The reference answered nothing.")
    rows = []
    for one in asked:
        name = one.name if one else AS_IT_IS
        try:
            given, took, failed = (answers, seconds, failure) if one == basis else work.answers(one)
        except CancelledError:
            raise
        except QlangchainError as error:
            rows.append(ChainRow(name, problems=(str(error),)))
            continue
        problems = (f"{sum(answer is None for answer in given)} inputs failed: {failed}",) if failed else ()
        rows.append(ChainRow(name, agree(given, answers, wanted), took, given, problems))
    return Evaluation(basis.name, answers, tuple(rows))


def _refuse(chain: Any, found: Sequence[Quantized]) -> None:
    if not isinstance(chain, Runnable) and not callable(chain):
        raise InvalidInputError(f"{chain!r} is no chain.", hint="Pass a Runnable, or a function that makes one.")
    if not found:
        raise InvalidInputError(
            "There is no qlangchain model in the chain that could be exchanged.",
            hint="Pass a chain around get_llm or get_chat_model, or a function that makes it from model=.",
        )
    if any(one.endpoint for one in found):
        raise InvalidInputError(
            "A model of the chain is behind an endpoint, whose format is not ours to change.",
            hint="Pass a chain with a local model.",
        )


def _source(model: Quantized) -> Source:
    return pipeline.source_of(model.model or "demo", offline=pipeline.is_offline(model.offline))


def _most_precise(model: Quantized) -> Wanted:
    from qlangchain.evaluate.comparison import precise_format

    return Wanted(precise_format(_source(model)), Method.GGUF)


class _Work:
    def __init__(
        self, chain: Any, found: Sequence[Quantized], inputs: list[Any], greedy: bool, progress: Tell | None,
        cancel: threading.Event | None,
    ) -> None:  # fmt: skip
        self._chain, self._found, self._inputs, self._greedy = chain, found, inputs, greedy
        self._progress, self._cancel = progress, cancel

    def answers(self, wanted: Wanted | None) -> tuple[tuple[str | None, ...], float, QlangchainError | None]:
        """The chain's answers in a format, the mean seconds that an input took, and the first failure."""
        ready = {id(model): self._changed(model, wanted) for model in self._found}
        if isinstance(self._chain, Runnable):
            chain = exchanged(self._chain, lambda model: ready[id(model)])
        else:
            chain = self._chain(ready[id(self._found[0])])
        for model in ready.values():
            model.warm_up()  # what cannot be run is known before the first input, and loading is not timed
        given: list[str | None] = []
        failure: QlangchainError | None = None
        began = time.perf_counter()
        for number, one in enumerate(self._inputs, 1):
            if self._cancel is not None and self._cancel.is_set():
                raise CancelledError("The evaluation was cancelled.")
            try:
                given.append(as_text(chain.invoke(one)))
            except QlangchainError as error:
                given.append(None)
                failure = failure or error
            if self._progress:
                name = wanted.name if wanted else AS_IT_IS
                self._progress(Progress(f"{name}: ask", number, len(self._inputs)))
        return tuple(given), (time.perf_counter() - began) / len(self._inputs), failure

    def _changed(self, model: Quantized, wanted: Wanted | None) -> Quantized:
        settled: dict[str, Any] = {"temperature": 0.0} if self._greedy else {}
        settled["fallback"] = False  # another format in its place would be a wrong row
        if wanted is not None:
            name = model.model or "demo"
            if wanted.method is Method.GGUF:
                settled |= {"method": "GGUF", "format": wanted.name}
            else:
                place = Place(model.hardware, offline=model.offline, runtime=model.runtime)
                source = _source(model)
                made = obtain(name, source, wanted, place, progress=self._progress, cancel=self._cancel)
                settled |= {"model": str(made.path), "method": None, "format": None}
        return model.model_copy(update=settled)


def as_text(answer: Any) -> str:
    """What a chain returned as text that can be compared: a message with its tool calls, anything else as JSON."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, BaseMessage):
        calls = [{"name": call["name"], "args": call["args"]} for call in getattr(answer, "tool_calls", ())]
        return str(answer.text) + (json.dumps(calls, ensure_ascii=False, sort_keys=True) if calls else "")
    return json.dumps(answer, ensure_ascii=False, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        return as_text(value)
    return value.model_dump() if isinstance(value, BaseModel) else str(value)
