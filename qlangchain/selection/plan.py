"""A plan: how a model will be run, what that is expected to need and to give, and what was not taken.

Plain values with their way to JSON and back. Sizes are in bytes, contexts in tokens, speeds in tokens per second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from qlangchain.errors import InvalidInputError
from qlangchain.types import Method, Origin, Rejection, Target, UseCase


@dataclass(frozen=True, slots=True)
class Range:
    """A figure that is expected, and the range that the truth should lie in."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a choice needs and gives, each figure with its margin or its source.

    `memory` is what it takes of the machine's memory and `memory_free` what is there for it; `gpu` and `gpu_free` are
    those of the GPU. `parts` says what both are made of. `margin` is what the memory may be off by. `cached` are pages
    of the file that may be resident beside `memory`: the system drops them as soon as the room is wanted. `loss` is
    None where nobody has published one; `grade` is its rank in words. `fetch` and `write` are the bytes to be
    downloaded and to be written before it can be used.
    """

    memory: int
    memory_free: int
    margin: int
    parts: Mapping[str, int] = field(default_factory=dict, hash=False)
    gpu: int = 0
    gpu_free: int = 0
    decode: Range | None = None
    prefill: Range | None = None
    throughput: Range | None = None
    loss: float | None = None
    loss_unit: str = ""
    rank: int = 0
    grade: str = ""
    quality_source: str = ""
    fetch: int = 0
    write: int = 0
    cached: int = 0
    notes: tuple[str, ...] = ()

    @property
    def room(self) -> int:
        """The bytes that stay free, of the tighter of the two memories; negative where it does not fit."""
        on_gpu = self.gpu_free - self.gpu if self.gpu else self.memory_free
        return min(self.memory_free - self.memory, on_gpu)


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run the model that would work, and why it was not the one."""

    label: str
    method: Method
    format: str
    runtime: str
    origin: Origin
    context_length: int
    slots: int
    kv_type: str
    gpu_layers: int
    estimate: Estimate
    why: str = ""
    source: str = ""
    cpu_experts: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model will be run, with the reasons.

    `source` names the weights among the offers. `slots` is the number of requests that the engine decodes at once,
    `kv_type` the type of its KV cache, `gpu_layers` the layers on the GPU (-1 for all); the experts of the first
    `cpu_experts` of them stay on the CPU all the same. `runner_ups` would work as well, the best first; `rejected`
    would not, each with the number or the fact that decided it.
    """

    method: Method
    format: str
    library: str
    runtime: str
    hardware: Target
    context_length: int
    slots: int
    threads: int
    gpu_layers: int = 0
    cpu_experts: int = 0
    reasons: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    notices: tuple[str, ...] = ()
    origin: Origin = Origin.FOUND
    model: str = ""
    source: str = ""
    kv_type: str = "f16"
    use_case: UseCase = UseCase.PERSONAL
    estimate: Estimate | None = None
    runner_ups: tuple[Choice, ...] = ()

    def explain(self) -> str:
        """Say in sentences what was chosen, what it will need, and why it was chosen."""
        from qlangchain.selection.explain import explain

        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it; `from_dict` is the way back."""
        return asdict(self)

    def to_json(self) -> str:
        """The plan as JSON, the same for the same plan."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            InvalidInputError: it is not a plan.

        """
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"This is no plan: {error}.", hint="Pass what Plan.to_json() gave.") from error

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` gave; raises InvalidInputError for anything else."""
        try:
            values = dict(content)
            values["method"], values["origin"] = Method(values["method"]), Origin(values["origin"])
            values["hardware"], values["use_case"] = Target(values["hardware"]), UseCase(values["use_case"])
            values["rejected"] = tuple(Rejection(**one) for one in values["rejected"])
            values["runner_ups"] = tuple(_choice(one) for one in values["runner_ups"])
            values["estimate"] = None if values["estimate"] is None else _estimate(values["estimate"])
            values |= {name: tuple(values[name]) for name in ("reasons", "notices")}
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(f"This is no plan: {error!r}.", hint="Pass what Plan.to_json() gave.") from error

    def diff(self, other: Plan) -> dict[str, tuple[Any, Any]]:
        """Return what differs in what will be run: the field's name, its value here, its value in `other`.

        Reasons, notices and estimates follow from these and are left out.
        """
        said = {"reasons", "rejected", "notices", "runner_ups", "estimate"}
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name not in said}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _range(value: Any) -> Range | None:
    return None if value is None else Range(**value)


def _estimate(content: Mapping[str, Any]) -> Estimate:
    speeds = {name: _range(content[name]) for name in ("decode", "prefill", "throughput")}
    return Estimate(**{**content, **speeds, "notes": tuple(content["notes"])})


def _choice(content: Mapping[str, Any]) -> Choice:
    return Choice(
        **{
            **content,
            "method": Method(content["method"]),
            "origin": Origin(content["origin"]),
            "estimate": _estimate(content["estimate"]),
        }
    )
