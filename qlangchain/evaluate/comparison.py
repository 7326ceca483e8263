"""`compare`: one model in several formats, each judged on the user's own text and run on this machine's engine."""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qlangchain import hardware, pipeline, settings
from qlangchain.artifacts import records
from qlangchain.artifacts import source as sources
from qlangchain.artifacts.source import GgufFile, Source
from qlangchain.errors import CancelledError, InvalidInputError, NoWeightsError, QlangchainError
from qlangchain.evaluate import running, texts
from qlangchain.evaluate.agreement import agree
from qlangchain.evaluate.figures import Figures
from qlangchain.evaluate.formats import DEFAULT, UNQUANTIZED, Wanted, parse_all
from qlangchain.evaluate.making import Place, Tell, obtain
from qlangchain.evaluate.measured import as_measurement
from qlangchain.evaluate.reference import LIMIT
from qlangchain.evaluate.result import Comparison, Row
from qlangchain.evaluate.running import Run
from qlangchain.evaluate.texts import Prompt
from qlangchain.selection.quality import Verdict
from qlangchain.toolchains import worker
from qlangchain.toolchains.worker import Progress
from qlangchain.types import Artifact, Hardware, Method

LENGTH: Final = 512  # tokens of a chunk that is judged as a whole
TOKENS: Final = 8192  # predicted at most; the standard error in the table says whether that is enough

_STRANGE: Final = 1000.0  # a perplexity beyond what any model has with a text of its own kind


def compare(
    model: str | os.PathLike[str],
    formats: str | Iterable[str] = DEFAULT,
    text: str | os.PathLike[str] | None = None,
    *,
    prompts: str | os.PathLike[str] | Iterable[Any] | None = None,
    hardware: str = "auto",
    context_length: int = 2048,
    max_tokens: int = 64,
    tokens: int = TOKENS,
    judge: bool = True,
    serve: bool = True,
    timed: bool = True,
    runtime: str | None = None,
    offline: bool | None = None,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> Comparison:
    """Compare a model's formats on one's own text and machine.

    Each format is found or made (and kept in the store), judged against full precision in child processes, one model
    in memory at a time, and then run on the engine that would serve it here. What cannot be made or served is a row
    with the reason. Verdicts and speeds are remembered for `plan`.

    Args:
        model: "demo", a directory or a GGUF file, or a hub id.
        formats: such as "fp16,gptq-4,awq-4,Q8_0,Q4_K_M", or a sequence of such words.
        text: what to judge by: a file, or the words themselves; None is a short text that ships with the project.
            Some thousand tokens of the kind of text that the model is for say most.
        prompts: a file or a sequence for `agreement`, see `texts.read_prompts`; None leaves it out.
        hardware: "auto", "cpu", "gpu" or "hybrid".
        context_length: tokens of context for every format, at most the model's own; memory depends on it.
        max_tokens: of an answer to a prompt.
        tokens: how many tokens of the text are predicted at most.
        judge: whether perplexity and KL divergence are measured.
        serve: whether each format is run on its engine.
        timed: whether it is timed there; without, the prompts alone are answered.
        runtime: the name of a runtime, where the choice is not the planner's.
        offline: whether the network is forbidden; None asks the settings.
        progress: called with what is being done, how far it is and how long it will take.
        cancel: set it to end the work; what was made stays in the store.

    Raises:
        InvalidInputError: an unknown format, a text that is too short, prompts that are none.
        ModelNotFoundError and other ArtifactErrors: there is no such model, or it cannot be used at all.
        CancelledError: `cancel` was set.

    """
    asked = parse_all(formats)
    words, known = texts.read_text(text), texts.read_prompts(prompts)
    place = Place(hardware, context_length, runtime, offline)
    place.requirements()  # unknown words are refused before any work
    for name, number in (("max_tokens", max_tokens), ("tokens", tokens)):
        if number < 1:
            raise InvalidInputError(f"{name}={number} is below one.", hint="Pass a whole number above zero.")
    source = pipeline.source_of(model, offline=pipeline.is_offline(offline))
    work = _Work(model, source, place, words, known, max_tokens, tokens, timed, progress, cancel)
    return work.compare(asked, judge=judge, serve=serve)


@dataclass(slots=True)
class _Work:
    model: str | os.PathLike[str]
    source: Source
    place: Place
    text: str
    prompts: tuple[Prompt, ...]
    max_tokens: int
    tokens: int
    timed: bool
    progress: Tell | None
    cancel: threading.Event | None
    machine: Hardware | None = None

    def compare(self, asked: Sequence[Wanted], *, judge: bool, serve: bool) -> Comparison:
        self.machine = hardware.with_bandwidth(hardware.detect(), settings.read().store)
        notes: list[str] = []
        reference: dict[str, Any] = {"tokens": 0, "how": "", "name": "", "perplexity": None}
        answers: tuple[str | None, ...] | None = None
        with tempfile.TemporaryDirectory(prefix="judging-", dir=self._room(), ignore_cleanup_errors=True) as scratch:
            directory = Path(scratch) / "reference"
            if judge:
                with self._noted(notes, "Precision was not judged", InvalidInputError):
                    reference |= self._reference(directory)
                    if reference["perplexity"] > _STRANGE:
                        notes.append(
                            f"The text is strange to this model (perplexity {reference['perplexity']:,.0f} at full "
                            "precision), so that its figures say little of what it is used for. "
                            "Pass a text of the kind that it is for."
                        )
            if serve and self.prompts:
                with self._noted(notes, "Full precision was not asked the prompts"):
                    answers = self._reference_answers()
            known = directory if reference["tokens"] else None
            rows = [self._row(wanted, known, answers, serve=serve) for wanted in asked]
        return Comparison(
            model=_shown(self.source.facts.name),
            machine=_machine_words(self.machine),
            text=texts.digest(self.text),
            tokens=reference["tokens"],
            reference=reference["name"],
            reference_how=reference["how"],
            reference_perplexity=reference["perplexity"],
            prompts=len(self.prompts),
            context_length=self.place.context_length,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            rows=tuple(rows),
            notes=tuple(notes),
        )

    def _room(self) -> Path:
        room = settings.read().store / "partial"
        try:
            room.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"{room} cannot be made: {error.strerror}.",
                hint="Set QLANGCHAIN_HOME to a directory that can be written.",
            ) from error
        return room

    @contextlib.contextmanager
    def _noted(self, notes: list[str], what: str, *raised: type[QlangchainError]) -> Iterator[None]:
        """Let a failure be a note, but for those that are `raised`: the other figures can be had all the same."""
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError("Comparing was cancelled.", hint="What was made is kept; call again.")
        try:
            yield
        except QlangchainError as error:
            if isinstance(error, (CancelledError, *raised)):
                raise
            notes.append(f"{what}: {error}")

    def _told(self, label: str) -> Callable[[Progress], None] | None:
        tell = self.progress
        if tell is None:
            return None
        return lambda seen: tell(replace(seen, stage=f"{label}: {seen.stage}"))

    def _job(self, name: str, arguments: dict[str, Any], label: str) -> dict[str, Any]:
        machine = self.machine
        threads = settings.read().threads or (machine.cores if machine else 1)
        found: dict[str, Any] = worker.run(
            f"qlangchain.evaluate.jobs:{name}",
            {**arguments, "threads": threads},
            progress=self._told(label),
            cancel=self.cancel,
        )
        return found

    @property
    def _weights(self) -> str | None:
        """The full-precision directory, which has config and tokenizer for what was made from it."""
        return str(self.source.weights) if self.source.weights else None

    def _whole(self) -> Path:
        """The most precise weights that are here."""
        if self.source.weights is not None:
            return self.source.weights
        if self.source.files:
            return _most_precise(self.source).path
        if self.source.directory is not None:
            return self.source.directory
        raise NoWeightsError(
            f"{self.source.facts.name} is not on this machine, so there is nothing to hold its formats to.",
            hint="Download its full-precision safetensors and pass the directory.",
        )

    def _reference(self, directory: Path) -> dict[str, Any]:
        whole = self._whole()
        found = self._job(
            "make_reference",
            {
                "model": str(whole), "source": self._weights, "text": self.text, "directory": str(directory),
                "length": LENGTH, "most": self.tokens, "limit": LIMIT,
            },
            "full precision",
        )  # fmt: skip
        named = next((file.format for file in self.source.files if file.path == whole), "")
        if not named:
            named = "the full-precision weights" if self.source.weights else whole.name
        return {"tokens": found["tokens"], "how": found["how"], "name": named, "perplexity": found["perplexity"]}

    def _reference_answers(self) -> tuple[str | None, ...]:
        wanted = Wanted(precise_format(self.source), Method.GGUF)
        artifact = obtain(self.model, self.source, wanted, self.place, progress=self._told("full precision"))
        return self._served(artifact, "full precision", timed=False).answers

    def _row(
        self, wanted: Wanted, directory: Path | None, answers: tuple[str | None, ...] | None, *, serve: bool
    ) -> Row:
        problems: list[str] = []
        made: list[Artifact] = []
        with self._noted(problems, "not made"):
            tell = self._told(wanted.name)
            made.append(obtain(self.model, self.source, wanted, self.place, progress=tell, cancel=self.cancel))
        if not made:
            return Row(wanted.name, problems=tuple(problems))
        artifact = made[0]
        row = Row(wanted.name, method=str(artifact.method), size_bytes=artifact.size_bytes, artifact=artifact.digest)
        if directory is not None:
            with self._noted(problems, "not judged"):
                row = self._judged(row, artifact, directory)
        if serve:
            with self._noted(problems, "not served"):
                row = self._run(row, wanted, artifact, answers)
            if row.runtime == "" and self.prompts:
                with self._noted(problems, "not answered"):
                    row = self._answered(row, artifact, answers)
        return replace(row, problems=(*row.problems, *problems))

    def _judged(self, row: Row, artifact: Artifact, directory: Path) -> Row:
        found = self._job(
            "score",
            {"model": str(artifact.path), "source": self._weights, "directory": str(directory)},
            row.format,
        )
        how = found.pop("how")
        figures = Figures(**found)
        store, today = settings.read().store, datetime.datetime.now(datetime.UTC).date().isoformat()
        # The planner knows what is here by its digest or name, and what could be made by model and format.
        names = {artifact.digest, f"{_shown(self.source.facts.name)}:{row.format}"}
        if artifact.path.is_dir():
            names.add(f"{_shown(artifact.path.name)}:{artifact.format}")
        for name in sorted(names):
            records.remember(
                store,
                Verdict(name, row.format, figures.kl, figures.ratio, figures.top1, texts.digest(self.text), today),
            )
        return replace(row, figures=figures, judged_by=how)

    def _served(self, artifact: Artifact, label: str, *, timed: bool) -> Run:
        method = None if artifact.method is Method.GGUF else str(artifact.method)
        prepared = pipeline.prepare(
            artifact.path,
            self.place.requirements(artifact.format if method is None else None, method),
            offline=self.place.offline,
        )
        template = sources.locate(artifact.path).chat_template is not None
        tell = self._told(label)
        counted = None if tell is None else lambda done, total: tell(Progress("ask", done, total))
        found = running.run(
            prepared, self.text, self.prompts, has_template=template, max_tokens=self.max_tokens, timed=timed,
            tell=counted,
        )  # fmt: skip
        if timed and found.tokens_per_second and self.machine:
            measured = as_measurement(prepared, found.tokens_per_second, self.machine)
            if measured:
                records.remember(settings.read().store, measured)
        return found

    def _run(self, row: Row, wanted: Wanted, artifact: Artifact, answers: tuple[str | None, ...] | None) -> Row:
        found = self._served(artifact, wanted.name, timed=self.timed)
        return replace(
            self._agreed(row, found.answers, answers),
            runtime=found.runtime,
            first_token_seconds=found.first_token_seconds,
            tokens_per_second=found.tokens_per_second,
            resident_bytes=found.resident_bytes,
            gpu_bytes=found.gpu_bytes,
            problems=(*row.problems, *([f"not answered: {found.failure}"] if found.failure else [])),
        )

    def _answered(self, row: Row, artifact: Artifact, answers: tuple[str | None, ...] | None) -> Row:
        asked = [[dict(message) for message in prompt.messages] for prompt in self.prompts]
        found = self._job(
            "answer",
            {
                "model": str(artifact.path), "source": self._weights, "prompts": asked,
                "max_tokens": self.max_tokens,
            },
            row.format,
        )  # fmt: skip
        return replace(self._agreed(row, found["answers"], answers), answered_by=found["how"])

    def _agreed(self, row: Row, given: Sequence[str | None], answers: tuple[str | None, ...] | None) -> Row:
        if not self.prompts:
            return row
        return replace(row, agreement=agree(given, answers, [prompt.wanted for prompt in self.prompts]))


def _shown(name: str) -> str:
    """A name as Unicode: those of files may be in any encoding."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def precise_format(source: Source) -> str:
    """The GGUF format that loses nothing of a model's weights, or else that of the most precise file there is."""
    if source.weights is None:
        if source.files:
            return _most_precise(source).format
        raise InvalidInputError(
            f"{source.facts.name} is quantized already, and there is nothing more precise to hold it to.",
            hint="Pass the full-precision model, or name a reference format.",
        )
    from qlangchain.produce.checkpoint import open_checkpoint

    found = open_checkpoint(source.weights).dtypes() & set(UNQUANTIZED)
    return found.pop() if len(found) == 1 else "F32"


def _most_precise(source: Source) -> GgufFile:
    order = {name: place for place, name in enumerate(("F32", "BF16", "F16", "Q8_0"))}
    return min(source.files, key=lambda file: (order.get(file.format, len(order)), -file.size_bytes))


def _machine_words(machine: Hardware) -> str:
    gpus = "".join(f", {gpu.name}" for gpu in machine.gpus)
    return f"{machine.cpu or 'unknown processor'}, {machine.cores} cores{gpus}"
