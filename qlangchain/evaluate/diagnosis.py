"""One served model examined: what it is, what it loses, how fast it is and what it takes, and what would help."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlangchain import hardware as machines
from qlangchain import pipeline, settings
from qlangchain.artifacts import records
from qlangchain.artifacts import source as sources
from qlangchain.evaluate.advice import Advice, Findings, advise
from qlangchain.evaluate.comparison import compare, precise_format
from qlangchain.evaluate.formats import UNQUANTIZED, parse
from qlangchain.evaluate.making import CONTEXT, Tell
from qlangchain.evaluate.measured import as_measurement
from qlangchain.evaluate.result import Comparison
from qlangchain.pipeline import Prepared
from qlangchain.selection import kernels
from qlangchain.selection.formats import canonical
from qlangchain.types import Method


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found of a model, and the advice that follows, in order."""

    model: str
    findings: Findings
    comparison: Comparison | None
    advice: tuple[Advice, ...]

    def to_dict(self) -> dict[str, Any]:
        """The figures and the advice, as JSON takes them."""
        found = self.findings
        return {
            "model": self.model,
            "format": found.format,
            "method": str(found.method),
            "runtime": found.runtime,
            "device": found.device,
            "is_quantized": found.is_quantized,
            "kl": found.kl,
            "same_answers": found.agreement,
            "tokens_per_second": found.speed,
            "predicted_tokens_per_second": found.predicted,
            "unquantized_tokens_per_second": found.whole_speed,
            "resident_bytes": found.resident,
            "weight_bytes": found.weights,
            "context_length": found.context,
            "threads": found.threads,
            "problems": [] if self.comparison is None else [p for row in self.comparison.rows for p in row.problems],
            "advice": [
                {"symptom": str(one.symptom), "remedy": one.remedy, "why": one.why, "gain": one.gain}
                for one in self.advice
            ],
        }


def diagnose(
    model: str | os.PathLike[str],
    text: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    prompts: str | os.PathLike[str] | Iterable[Any] | None = None,
    hardware: str = "auto",
    measure: bool = True,
    offline: bool | None = None,
    progress: Tell | None = None,
) -> Diagnosis:
    """Examine a model as it would be served here, and say what would make it better.

    With `measure` it is judged and timed as `compare` does it, beside the unquantized model where that is there;
    without, what is remembered and published has to do. Raises what `pipeline.prepare` raises.
    """
    source = pipeline.source_of(model, offline=pipeline.is_offline(offline))
    asked = parse(format) if format else None
    wanted = pipeline.requirements(
        hardware=hardware,
        method=str(asked.method) if asked else None,
        format=asked.name if asked and asked.method is Method.GGUF else None,
    )
    prepared = pipeline.prepare(model if isinstance(model, str) else Path(model), wanted, offline=offline)
    found = _read(prepared)
    comparison = None
    if measure:
        names = [found.format]
        if found.is_quantized and source.weights is not None:
            names.append(precise_format(source))
        where = prepared.artifact.path if found.method is not Method.GGUF else model
        comparison = compare(
            where, names, text, prompts=prompts, hardware=hardware, offline=offline, progress=progress,
            context_length=CONTEXT, judge=source.weights is not None,
        )  # fmt: skip
        row = comparison.rows[0]
        whole = comparison.rows[1] if len(comparison.rows) > 1 else None
        found = replace(
            found,
            kl=row.figures.kl if row.figures else found.kl,
            agreement=row.agreement.same if row.agreement else None,
            speed=row.tokens_per_second,
            whole_speed=whole.tokens_per_second if whole else None,
            resident=row.resident_bytes,
        )
    return Diagnosis(source.facts.name, found, comparison, advise(found))


def _read(prepared: Prepared) -> Findings:
    """What can be told without running it."""
    plan, artifact = prepared.plan, prepared.artifact
    machine = machines.with_bandwidth(machines.detect(), settings.read().store)
    method = artifact.method if artifact.method in (Method.GPTQ, Method.AWQ) else None
    format = canonical(artifact.format, method)
    there = sources.locate(artifact.path)
    quantized = there.quantization
    device = "gpu" if plan.gpu_layers == -1 else "hybrid" if plan.gpu_layers else "cpu"
    verdict = records.verdict_of(settings.read().store, artifact.digest, f"{there.facts.name}:{artifact.format}")
    expected = as_measurement(prepared, 1.0, machine)  # for the prediction that it holds
    return Findings(
        format=format,
        method=artifact.method,
        architecture=there.facts.architecture,
        parameters=there.facts.parameters,
        is_quantized=format not in UNQUANTIZED and artifact.method is not Method.NONE,
        group_size=quantized.group_size if quantized else None,
        kl=verdict.kl if verdict else None,
        runtime=plan.runtime,
        device=device,
        predicted=expected.predicted if expected else None,
        threads=plan.threads,
        cores=machine.cores,
        has_gpu=machine.has_gpu,
        gpu_layers=plan.gpu_layers,
        kernel_problem=kernels.supported(
            format, plan.runtime, machine.gpus[0] if device != "cpu" and machine.gpus else None, flags=machine.flags
        )
        or "",
        weights=artifact.size_bytes,
        context=plan.context_length,
        slots=plan.slots,
        kv_type=plan.kv_type,
    )
