"""What holds for every plan, whatever the machine, the model, the engines and the offers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapes import CONFIGS, shape
from unit.inventing import (
    ANY_FACTS,
    CPU_BOX,
    CPU_ENGINE,
    FACTS,
    GIB,
    GPU,
    GPU_BOX,
    GPU_ENGINE,
    KQUANTS,
    MODEL,
    PLAIN,
    found,
    produced,
)

from qlangchain.errors import DoesNotFitError, HardwareUnavailableError, InvalidInputError, QlangchainError
from qlangchain.selection import explain, targets
from qlangchain.selection.choose import choose_quantization_method
from qlangchain.selection.costing import DEFAULT_SLOTS, Option, cost
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.memory import need
from qlangchain.selection.ordering import Order
from qlangchain.selection.placing import LLAMA, Setting, Situation
from qlangchain.selection.plan import Plan
from qlangchain.selection.planner import make_plan, plans
from qlangchain.selection.weights import predicted
from qlangchain.types import EngineFacts, Gpu, Hardware, Method, Origin, Requirements, Target

Facts = tuple[Requirements, Hardware, ModelFacts, list[Offer], tuple[EngineFacts, ...]]


def outcome(*facts: Any) -> Plan | QlangchainError:
    """The plan, or why there is none; an error that is not ours fails the test."""
    try:
        return make_plan(*facts)
    except QlangchainError as error:
        return error


def planned(*facts: Any) -> Plan:
    """The plan of facts that allow one."""
    result = outcome(*facts)
    assume(isinstance(result, Plan))
    assert isinstance(result, Plan)
    return result


def options_of(facts: Facts) -> list[Option]:
    """Everything that would work."""
    wanted, hardware, model, offers, engines = facts
    target = targets.target_of(wanted, hardware, engines, [], [])
    at = Situation(wanted, hardware, model, target, hardware.cores)
    pairs = [(offer, engine) for offer in offers for engine in engines if offer.method in engine.methods]
    return [one for offer, engine in pairs if isinstance(one := cost(offer, engine, at), Option)]


@given(ANY_FACTS)
def test_any_facts_give_a_plan_or_an_error_with_a_hint(facts: Facts) -> None:
    result = outcome(*facts)
    assert isinstance(result, Plan) or (result.message and result.hint)


@given(ANY_FACTS)
def test_the_same_facts_give_the_same_plan(facts: Facts) -> None:
    first = outcome(*facts)
    assert repr(first) == repr(outcome(*facts))
    wanted, hardware, model, offers, engines = facts
    if isinstance(first, Plan) and len({(o.method, o.format, o.key) for o in offers}) == len(offers):
        # Nor does the order in which the offers were found matter.
        other = outcome(wanted, hardware, model, offers[::-1], engines)
        assert isinstance(other, Plan)
        assert first.diff(other) == {}


@given(FACTS)
def test_a_plan_is_made_of_what_there_is(facts: Facts) -> None:
    wanted, hardware, model, offers, engines = facts
    chosen = planned(*facts)
    offer = next(o for o in offers if (o.format, o.origin, o.key) == (chosen.format, chosen.origin, chosen.source))
    engine = next(engine for engine in engines if engine.runtime == chosen.runtime)
    assert engine.installed
    assert chosen.method in engine.methods
    assert not offer.why_not
    assert wanted.format in (None, chosen.format)
    assert wanted.context_length in (None, chosen.context_length)
    assert wanted.concurrency in (None, chosen.slots)
    assert 1 <= chosen.context_length <= model.max_context
    assert 1 <= chosen.slots <= (wanted.concurrency or DEFAULT_SLOTS)
    assert chosen.threads == hardware.cores
    assert chosen.hardware is not Target.AUTO
    assert wanted.hardware in (Target.AUTO, chosen.hardware)
    usable = chosen.hardware is not Target.CPU and engine.gpu and hardware.has_gpu
    assert usable or chosen.gpu_layers == 0
    assert chosen.hardware is not Target.GPU or chosen.gpu_layers == -1


@given(FACTS)
def test_a_plan_never_exceeds_the_machine(facts: Facts) -> None:
    hardware = facts[1]
    chosen = planned(*facts)
    for estimate in (chosen.estimate, *(one.estimate for one in chosen.runner_ups)):
        assert estimate is not None
        assert estimate.memory <= hardware.memory_available
        assert estimate.gpu <= sum(gpu.free_bytes for gpu in hardware.gpus)
        if any(gpu.unified for gpu in hardware.gpus):
            assert estimate.memory + estimate.gpu <= hardware.memory_available
        if hardware.disk_free is not None:
            assert estimate.fetch + estimate.write <= hardware.disk_free


@given(FACTS)
def test_everything_has_its_reason(facts: Facts) -> None:
    chosen = planned(*facts)
    assert all(reason.strip() and reason.endswith(".") for reason in chosen.reasons)
    assert any("the table says" in reason for reason in chosen.reasons)
    for choice, reason in (
        *((one.choice, one.reason) for one in chosen.rejected),
        *((one.label, one.why) for one in chosen.runner_ups),
    ):
        assert choice.strip() and reason.strip()
        decided = ("needs", "it takes", "tokens", "quality", "to fetch", "publisher")
        if any(word in reason for word in decided) and "why_not" not in reason:
            assert any(letter.isdigit() for letter in reason), reason
    assert len(set(chosen.notices)) == len(chosen.notices)
    assert len(set(chosen.rejected)) == len(chosen.rejected)


@given(FACTS)
def test_what_is_not_the_tables_choice_says_why(facts: Facts) -> None:
    wanted = facts[0]
    chosen = planned(*facts)
    assume(wanted.format is None)
    by = next(reason for reason in chosen.reasons if "the table says" in reason)
    row = choose_quantization_method(wanted.use_case, by.split(",")[0].lower(), wanted.precision_required)
    assert f"the table says {row['method']} {row['format']}" in by
    if (chosen.method, chosen.format) != (row["method"], row["format"]):
        assert any(f"{chosen.format} instead of the table's" in reason for reason in chosen.reasons)


@settings(max_examples=150)
@given(FACTS, st.integers(0, 1 << 35), st.integers(0, 1 << 35))
def test_more_memory_never_gives_a_worse_plan(facts: Facts, memory: int, vram: int) -> None:
    # The GPUs are ones that help: known to be faster than the memory beside them.
    wanted, hardware, *rest = facts
    hardware = replace(hardware, gpus=tuple(gpu for gpu in hardware.gpus if gpu.bandwidth_bytes and not gpu.unified))
    planned(wanted, hardware, *rest)
    gpus = tuple(
        replace(gpu, free_bytes=gpu.free_bytes + vram, total_bytes=gpu.total_bytes + vram) for gpu in hardware.gpus
    )
    richer = replace(hardware, memory_available=hardware.memory_available + memory, gpus=gpus)
    poor, rich = options_of((wanted, hardware, *rest)), options_of((wanted, richer, *rest))
    row = choose_quantization_method(wanted.use_case, "cpu", wanted.precision_required)
    order = Order(wanted, facts[2], row, [*rich, *poor])
    best, worse = min(map(order.key, rich)), min(map(order.key, poor))
    # What is compared is what a user gets; sizes and names break ties between options that both machines have.
    assert best <= worse


@given(
    st.sampled_from(sorted(CONFIGS)), st.sampled_from(["F16", "Q8_0", "Q4_K_M"]), st.integers(16, 1 << 17),
    st.integers(16, 1 << 17), st.integers(1, 8), st.sampled_from(["f16", "q8_0"]),
)  # fmt: skip
def test_a_longer_context_never_needs_less(
    name: str, format: str, one: int, other: int, slots: int, kv_type: str
) -> None:
    model = shape(name)
    weights = predicted(model, format)
    short, long = (need(model, weights, Setting(context, slots, kv_type).load) for context in sorted((one, other)))
    assert short.total <= long.total


@settings(max_examples=40)
@given(FACTS, st.integers(16, 2048))
def test_a_longer_context_never_gives_more_requests_of_the_same(facts: Facts, context: int) -> None:
    wanted, hardware, model, offers, engines = facts
    wanted = replace(wanted, concurrency=None)
    lengths = sorted((context, wanted.context_length or 2048))
    for offer in offers:
        for engine in engines:
            at = [
                Situation(replace(wanted, context_length=length), hardware, model, Target.CPU, 1) for length in lengths
            ]
            short, long = cost(offer, engine, at[0]), cost(offer, engine, at[1])
            if isinstance(long, Option):
                assert isinstance(short, Option)
                if short.setting.kv_type == long.setting.kv_type:
                    assert short.setting.slots >= long.setting.slots


@given(FACTS)
def test_a_gpu_that_was_asked_for_is_used_or_refused(facts: Facts) -> None:
    wanted, hardware, model, offers, engines = facts
    wanted = replace(wanted, hardware=Target.GPU)
    if hardware.has_gpu and any(engine.gpu for engine in engines):
        result = outcome(wanted, hardware, model, offers, engines)
        assert not isinstance(result, Plan) or result.gpu_layers == -1
    else:
        with pytest.raises(HardwareUnavailableError):
            make_plan(wanted, hardware, model, offers, engines)


# What a plan can be turned into.


@given(FACTS)
def test_json_and_back(facts: Facts) -> None:
    chosen = planned(*facts)
    text = chosen.to_json()
    again = Plan.from_json(text)
    assert again == chosen
    assert again.to_json() == text
    assert chosen.diff(again) == {}
    assert json.loads(text)["format"] == chosen.format


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_json_of_anything_else(content: Any) -> None:
    with pytest.raises(InvalidInputError):
        Plan.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "[" * 100_000, '{"method": "GGUF"}'])
def test_json_that_is_no_plan(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Plan.from_json(text)


def test_a_difference_names_the_fields() -> None:
    one = make_plan(Requirements(), CPU_BOX, MODEL, produced(*PLAIN), CPU_ENGINE)
    other = make_plan(Requirements(precision_required=False), CPU_BOX, MODEL, produced(*PLAIN), CPU_ENGINE)
    assert one.diff(other) == {"format": ("Q5_1", "Q4_0"), "source": ("make:Q5_1", "make:Q4_0")}


@given(FACTS)
def test_sentences_and_rows_say_everything(facts: Facts) -> None:
    chosen = planned(*facts)
    said, rows = chosen.explain(), explain.rows(chosen)
    assert chosen.format in said
    assert all(reason in said for reason in chosen.reasons)
    assert all(rejection.reason in said for rejection in chosen.rejected)
    assert all(len(row.cells) == len(explain.COLUMNS) for row in rows)
    assert [row.verdict for row in rows].count(explain.CHOSEN) == 1
    assert sum(row.verdict == explain.RUNNER_UP for row in rows) == len(chosen.runner_ups)
    reasons = [row.why for row in rows if row.verdict == explain.REJECTED]
    assert len(set(reasons)) == len(reasons)


def test_rejections_of_one_reason_are_one_line() -> None:
    offers = produced("Q8_0") + produced(*KQUANTS, why_not="it cannot be made")
    said = make_plan(Requirements(), CPU_BOX, MODEL, offers, CPU_ENGINE).explain()
    assert f"- {', '.join(KQUANTS)} on llamacpp: it cannot be made" in said
    for part in ("weights", "KV cache", "compute buffers", "the engine's process"):
        assert part in said


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0434, "0.043"), (0.5, "0.50"), (7.14, "7.1"), (9.99, "10.0"), (43.2, "43"), (2409.6, "2,400")],
)
def test_speeds_have_two_digits(value: float, text: str) -> None:
    assert explain.rate(value) == text


# The ladder.


@given(FACTS)
def test_the_ladder_never_repeats_a_step_and_never_changes_what_was_asked_for(facts: Facts) -> None:
    wanted = facts[0]
    planned(*facts)
    steps = plans(*facts)
    seen = [
        (s.method, s.format, s.source, s.runtime, s.context_length, s.slots, s.kv_type, s.gpu_layers) for s in steps
    ]
    assert len(set(seen)) == len(seen)
    for step in steps[1:]:
        assert wanted.format in (None, step.format)
        assert wanted.method in (None, step.method)
        assert wanted.context_length in (None, step.context_length)
        assert wanted.concurrency in (None, step.slots)
        assert wanted.runtime in (None, step.runtime)
        assert wanted.gpu_layers in (None, step.gpu_layers)
        assert wanted.hardware is not Target.GPU or step.gpu_layers == -1
        assert step.model == steps[0].model
        assert step.notices[-1].startswith("Fallback: ")
        assert step.context_length <= steps[0].context_length
        assert step.slots <= steps[0].slots
    assert [len(step.notices) for step in steps] == list(
        range(len(steps[0].notices), len(steps[0].notices) + len(steps))
    )


def places_of(steps: tuple[Plan, ...], *words: str) -> list[int]:
    """Where in the ladder each word is announced."""
    said = [step.notices[-1] for step in steps[1:]]
    return [next(i for i, notice in enumerate(said) if word in notice) for word in words]


def test_every_step_down_is_announced_in_order() -> None:
    formats = found("Q4_K_M", "Q4_0", "Q2_K")
    places = places_of(
        plans(Requirements(), CPU_BOX, MODEL, formats, CPU_ENGINE),
        "1 request", "q8_0", "4096", "2048", "smaller format Q4_0", "smaller format Q2_K",
    )  # fmt: skip
    assert places == sorted(places)
    small = replace(GPU_BOX, gpus=(replace(GPU, free_bytes=6 * GIB),))
    places = places_of(
        plans(Requirements(), small, MODEL, formats, GPU_ENGINE),
        "q8_0", "4096", "2048", "layers on the GPU", "no layers", "smaller format",
    )  # fmt: skip
    assert places == sorted(places)


@pytest.mark.parametrize(
    "wanted",
    [
        {"format": "Q4_K_M"},
        {"context_length": 4096},
        {"concurrency": 4},
        {"gpu_layers": 8},
        {"hardware": Target.GPU},
        {"runtime": "llamacpp"},
    ],
)
def test_what_was_asked_for_by_name_stays(wanted: dict[str, Any]) -> None:
    steps = plans(Requirements(**wanted), GPU_BOX, MODEL, found("Q4_K_M", "Q4_0"), GPU_ENGINE)
    names = {"context_length": "context_length", "concurrency": "slots", "gpu_layers": "gpu_layers", "format": "format"}
    for asked, value in wanted.items():
        if asked in names:
            assert {getattr(step, names[asked]) for step in steps} == {value}
    if "hardware" in wanted:
        assert {step.gpu_layers for step in steps} == {-1}


def test_each_step_has_figures_of_its_own() -> None:
    """A step down takes less than the one before, and says how much."""
    steps = plans(Requirements(), CPU_BOX, MODEL, found("Q4_K_M", "Q2_K"), CPU_ENGINE)
    taken = [step.estimate.memory for step in steps if step.estimate]
    assert len(taken) == len(steps)
    assert taken == sorted(taken, reverse=True)
    assert len(set(taken)) == len(taken)
    assert steps[-1].format == "Q2_K"
    assert steps[-1].estimate and steps[-1].estimate.parts["weights"] < 4 * GIB
    assert all(step.to_dict() == Plan.from_json(step.to_json()).to_dict() for step in steps)


def test_a_model_that_is_all_on_the_gpu_gives_up_half_of_its_layers_first() -> None:
    steps = plans(Requirements(), GPU_BOX, MODEL, found("Q4_K_M"), GPU_ENGINE)
    assert list(dict.fromkeys(step.gpu_layers for step in steps)) == [-1, 16, 0]
    gpu = [step.estimate.gpu for step in steps if step.estimate]
    assert gpu == sorted(gpu, reverse=True)
    assert gpu[-1] == 0


def test_a_cache_that_would_end_the_engine_is_no_step() -> None:
    phi = ModelFacts("phi", replace(MODEL.architecture, name="phi3"))
    assert {step.kv_type for step in plans(Requirements(), CPU_BOX, phi, found("Q5_1"), CPU_ENGINE)} == {"f16"}


def test_the_ladder_s_other_engine_is_one_that_was_looked_at() -> None:
    from unit.inventing import TRANSFORMERS, whole

    steps = plans(Requirements(), CPU_BOX, MODEL, [*found("Q5_1"), whole("BF16")], (CPU_ENGINE, TRANSFORMERS))
    assert steps[-1].runtime == "transformers"
    assert steps[-1].slots == 1
    assert steps[-1].library == "transformers"
    assert all(step.runtime in LLAMA for step in steps[:-1])


# Machines that cannot be.


@pytest.mark.parametrize(
    "change",
    [
        {"memory_available": -1},
        {"memory_total": -5},
        {"memory_available": 1 << 61},
        {"memory_available": float("nan")},
        {"memory_available": "16GiB"},
        {"cores": 0},
        {"cores": -4},
        {"cores": 1 << 20},
        {"bandwidth_bytes": -1},
        {"disk_free": -1},
        {"gpus": (Gpu("A", -1, 0),)},
        {"gpus": (Gpu("A", 8 * GIB, -1),)},
        {"gpus": (Gpu("A", 8 * GIB, 1 << 62),)},
    ],
)
def test_machines_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make_plan(Requirements(), replace(CPU_BOX, **change), MODEL, produced(*PLAIN), CPU_ENGINE)
    assert next(iter(change)).rstrip("s") in caught.value.message or "A: " in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("free", [0, 1, 1 << 20, GIB])
def test_a_machine_where_nothing_fits(free: int) -> None:
    with pytest.raises(DoesNotFitError, match="are missing") as caught:
        make_plan(Requirements(), replace(CPU_BOX, memory_available=free), MODEL, produced(*PLAIN), CPU_ENGINE)
    assert "Q4_0 on llamacpp" in caught.value.message
    # What is missing is what has to be added for the nearest plan.
    enough = replace(CPU_BOX, memory_available=free + caught.value.missing_bytes)
    assert make_plan(Requirements(), enough, MODEL, produced(*PLAIN), CPU_ENGINE).format == "Q4_0"
    short = replace(CPU_BOX, memory_available=free + caught.value.missing_bytes - 1)
    with pytest.raises(DoesNotFitError):
        make_plan(Requirements(), short, MODEL, produced(*PLAIN), CPU_ENGINE)


def test_an_offer_is_found_before_it_is_made_in_any_order() -> None:
    for offers in (produced("Q5_1") + found("Q5_1"), found("Q5_1") + produced("Q5_1")):
        chosen = make_plan(Requirements(), CPU_BOX, MODEL, offers, CPU_ENGINE)
        assert (chosen.origin, chosen.method) == (Origin.FOUND, Method.GGUF)
