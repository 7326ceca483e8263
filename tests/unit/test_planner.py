"""Choosing, held to properties over invented machines, models, engines and offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qlangchain import pipeline
from qlangchain.errors import (
    HardwareUnavailableError,
    InvalidInputError,
    MissingDependencyError,
    NoWeightsError,
    QlangchainError,
)
from qlangchain.selection.choose import choose_quantization_method
from qlangchain.selection.memory import kv_bytes_per_token, slots_that_fit
from qlangchain.selection.planner import DEFAULT_CONTEXT, DEFAULT_SLOTS, MIN_CONTEXT, make_plan
from qlangchain.types import (
    EngineFacts,
    Gpu,
    Hardware,
    Method,
    ModelFacts,
    Offer,
    Origin,
    Plan,
    Requirements,
    Target,
    UseCase,
)

GIB = 1 << 30
PLAIN = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
KQUANTS = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K")
GPU = Gpu("RTX 4090", 24 * GIB, 22 * GIB)
CPU_BOX = Hardware(memory_total=16 * GIB, memory_available=12 * GIB, cores=8)
GPU_BOX = replace(CPU_BOX, gpus=(GPU,))
CPU_ENGINE = EngineFacts("llamacpp", "llama.cpp b1", gpu=False, gpu_hint="Install a build for GPUs.")
GPU_ENGINE = replace(CPU_ENGINE, gpu=True)
MODEL = ModelFacts("m", max_context=32_768, kv_bytes_per_token=50_000)


def produced(*formats: str) -> list[Offer]:
    return [Offer(Method.GGUF, format, Origin.PRODUCED, 4 * GIB) for format in formats]


def found(*formats: str) -> list[Offer]:
    return [Offer(Method.GGUF, format, Origin.FOUND, (4 + number) * GIB) for number, format in enumerate(formats)]


def plan(
    offers: list[Offer] | None = None, machine: Hardware = CPU_BOX, engine: EngineFacts = CPU_ENGINE, **wanted: Any
) -> Plan:
    return make_plan(Requirements(**wanted), machine, MODEL, produced(*PLAIN) if offers is None else offers, engine)


# What may come in.

SIZES = st.integers(1, 1 << 40)
GPUS = st.builds(Gpu, name=st.sampled_from(["A", "B"]), total_bytes=SIZES, free_bytes=SIZES)
MACHINES = st.builds(
    Hardware,
    memory_total=SIZES,
    memory_available=SIZES,
    cores=st.integers(1, 256),
    gpus=st.lists(GPUS, max_size=2).map(tuple),
    sources=st.just({}),
)
MODELS = st.builds(
    ModelFacts,
    name=st.just("m"),
    max_context=st.integers(1, 1 << 14) | st.integers(1 << 14, 1 << 21),
    kv_bytes_per_token=st.integers(0, 1 << 22),
)
OFFERS = st.lists(
    st.builds(
        Offer,
        method=st.just(Method.GGUF),
        format=st.sampled_from([*PLAIN, *KQUANTS, "IQ4_XS"]),
        origin=st.sampled_from(Origin),
        size_bytes=SIZES,
    ),
    max_size=8,
)
ENGINES = st.builds(
    EngineFacts, runtime=st.just("llamacpp"), version=st.just("b1"), gpu=st.booleans(), gpu_hint=st.just("Install it.")
)
SENSIBLE = {
    "use_case": st.sampled_from(UseCase),
    "hardware": st.sampled_from(Target),
    "precision_required": st.booleans(),
    "context_length": st.none() | st.integers(MIN_CONTEXT, 4096),
    "concurrency": st.none() | st.integers(1, 256),
    "method": st.sampled_from([None, Method.GGUF]),
    "format": st.sampled_from([None, None, None, *PLAIN]),
    "allow_produce": st.just(True),
}
ANY = {
    **SENSIBLE,
    "context_length": st.none() | st.integers(-5, 1 << 22),
    "concurrency": st.none() | st.integers(-1, 300),
    "method": st.sampled_from([None, *Method]),
    "format": st.sampled_from([None, *PLAIN, *KQUANTS, "Q9_9"]),
    "allow_produce": st.booleans(),
}
WEIGHTS = OFFERS.map(lambda offers: offers + produced(*PLAIN))
FACTS = st.tuples(st.builds(Requirements, **SENSIBLE), MACHINES, MODELS, WEIGHTS, ENGINES)
ANY_FACTS = st.tuples(st.builds(Requirements, **ANY), MACHINES, MODELS, OFFERS | WEIGHTS, ENGINES)


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


@given(ANY_FACTS)
def test_any_facts_give_a_plan_or_an_error_with_a_hint(facts: Any) -> None:
    result = outcome(*facts)
    assert isinstance(result, Plan) or (result.message and result.hint)


@given(ANY_FACTS)
def test_the_same_facts_give_the_same_plan(facts: Any) -> None:
    assert repr(outcome(*facts)) == repr(outcome(*facts))


@given(FACTS)
def test_a_plan_is_made_of_what_there_is(facts: Any) -> None:
    wanted, hardware, model, offers, engine = facts
    chosen = planned(*facts)
    offer = next(o for o in offers if (o.format, o.origin) == (chosen.format, chosen.origin))
    assert wanted.allow_produce or offer.origin is not Origin.PRODUCED
    assert wanted.format in (None, chosen.format)
    assert wanted.context_length in (None, chosen.context_length)
    assert wanted.concurrency in (None, chosen.slots)
    assert 1 <= chosen.context_length <= model.max_context
    assert 1 <= chosen.slots <= (wanted.concurrency or DEFAULT_SLOTS)
    assert (chosen.threads, chosen.runtime) == (hardware.cores, engine.runtime)
    assert chosen.hardware is not Target.AUTO
    assert wanted.hardware in (Target.AUTO, chosen.hardware)
    uses_gpu = chosen.gpu_layers != 0
    assert uses_gpu == (chosen.hardware is not Target.CPU and engine.gpu and hardware.has_gpu)


@given(FACTS)
def test_every_plan_has_its_reasons(facts: Any) -> None:
    chosen = planned(*facts)
    assert all(reason.strip() and reason.endswith(".") for reason in chosen.reasons)
    assert any("the table says" in reason for reason in chosen.reasons)
    for rejection in chosen.rejected:
        assert rejection.choice.strip()
        assert rejection.reason.strip()
        assert rejection.choice != chosen.format
    assert len(set(chosen.notices)) == len(chosen.notices)


@given(FACTS)
def test_what_is_not_the_tables_choice_is_a_rejection_of_it(facts: Any) -> None:
    wanted = facts[0]
    chosen = planned(*facts)
    assume(wanted.format is None)
    row = choose_quantization_method(wanted.use_case, chosen.hardware, wanted.precision_required)
    if chosen.format != row["format"]:
        assert any(row["format"] in rejection.choice for rejection in chosen.rejected)


@given(FACTS, SIZES)
def test_less_memory_never_gives_more_slots(facts: Any, less: int) -> None:
    wanted, hardware, *rest = facts
    poorer = replace(hardware, memory_available=min(less, hardware.memory_available))
    rich, poor = planned(wanted, hardware, *rest), make_plan(wanted, poorer, *rest)
    assert poor.slots <= rich.slots
    assert replace(poor, slots=rich.slots, reasons=rich.reasons) == rich


@given(FACTS, st.integers(MIN_CONTEXT, 1 << 14))
def test_a_longer_context_never_gives_more_slots(facts: Any, shorter: int) -> None:
    wanted, *rest = facts
    long = planned(wanted, *rest)
    short = planned(replace(wanted, context_length=shorter), *rest)
    if short.context_length > long.context_length:
        short, long = long, short
    assert long.slots <= short.slots


@given(FACTS)
def test_a_gpu_that_was_asked_for_is_used_or_refused(facts: Any) -> None:
    wanted, hardware, model, offers, engine = facts
    wanted = replace(wanted, hardware=Target.GPU)
    if hardware.has_gpu and engine.gpu:
        assert planned(wanted, hardware, model, offers, engine).gpu_layers == -1
    else:
        with pytest.raises(HardwareUnavailableError):
            make_plan(wanted, hardware, model, offers, engine)


@given(FACTS)
def test_hybrid_without_a_gpu_says_so(facts: Any) -> None:
    wanted, hardware, model, offers, engine = facts
    chosen = planned(replace(wanted, hardware=Target.HYBRID), hardware, model, offers, engine)
    alone = any("hybrid" in notice and "CPU alone" in notice for notice in chosen.notices)
    assert alone == (chosen.gpu_layers == 0) == (not (hardware.has_gpu and engine.gpu))


# The table first.


@pytest.mark.parametrize(
    ("hardware", "precise", "format"),
    [("cpu", True, "Q5_1"), ("cpu", False, "Q4_0"), ("hybrid", True, "Q4_K_M"), ("hybrid", False, "Q4_K_M")],
)
@pytest.mark.parametrize("origin", [produced, found])
def test_the_tables_format_is_taken_where_it_is_on_offer(
    hardware: str, precise: bool, format: str, origin: Any
) -> None:
    chosen = plan(origin(*PLAIN, *KQUANTS), **words(hardware=hardware, precision_required=precise))
    assert (chosen.format, chosen.rejected) == (format, ())


@pytest.mark.parametrize(("precise", "row"), [(True, "AWQ INT4"), (False, "GPTQ INT4")])
def test_a_gpu_method_without_an_engine_is_rejected_with_the_reason(precise: bool, row: str) -> None:
    chosen = plan(produced(*PLAIN, *KQUANTS), GPU_BOX, GPU_ENGINE, hardware=Target.GPU, precision_required=precise)
    assert chosen.format == "Q4_K_M"
    assert chosen.gpu_layers == -1
    (rejection,) = chosen.rejected
    assert rejection.choice == row
    assert "no engine" in rejection.reason


@pytest.mark.parametrize("use_case", list(UseCase))
def test_the_use_case_changes_nothing_yet_and_is_understood(use_case: UseCase) -> None:
    assert plan(use_case=use_case).format == "Q5_1"


@pytest.mark.parametrize(
    ("hardware", "engine", "target", "notice"),
    [
        (CPU_BOX, CPU_ENGINE, Target.CPU, ""),
        (CPU_BOX, GPU_ENGINE, Target.CPU, ""),
        (GPU_BOX, CPU_ENGINE, Target.CPU, "The GPU (RTX 4090) is not used"),
        (GPU_BOX, GPU_ENGINE, Target.HYBRID, ""),
    ],
)
def test_auto(hardware: Hardware, engine: EngineFacts, target: Target, notice: str) -> None:
    chosen = plan(produced(*PLAIN, *KQUANTS), hardware, engine)
    assert chosen.hardware is target
    assert len(chosen.notices) == bool(notice)
    assert "".join(chosen.notices).startswith(notice)


@pytest.mark.parametrize("hardware", [GPU_BOX, CPU_BOX])
def test_the_cpu_can_be_asked_for(hardware: Hardware) -> None:
    chosen = plan(None, hardware, GPU_ENGINE, hardware=Target.CPU)
    assert (chosen.hardware, chosen.gpu_layers, chosen.notices) == (Target.CPU, 0, ())


@pytest.mark.parametrize(
    ("hardware", "engine", "why"),
    [(CPU_BOX, GPU_ENGINE, "no GPU"), (CPU_BOX, CPU_ENGINE, "no GPU"), (GPU_BOX, CPU_ENGINE, "without GPU support")],
)
def test_why_a_gpu_is_refused(hardware: Hardware, engine: EngineFacts, why: str) -> None:
    with pytest.raises(HardwareUnavailableError, match=why) as caught:
        plan(None, hardware, engine, hardware=Target.GPU)
    assert "Install a build for GPUs." in caught.value.hint


# Substitutes.


@pytest.mark.parametrize("origin", [produced, lambda *formats: produced(*formats) + found("Q5_0")])
def test_the_plain_type_instead_of_one_that_needs_the_quantizer(origin: Any) -> None:
    chosen = plan(origin(*PLAIN), **words(hardware="hybrid"))
    assert chosen.format == "Q5_0"
    assert [rejection.choice for rejection in chosen.rejected] == ["Q4_K_M"]
    assert any("Q5_0 instead of Q4_K_M" in notice and "pip install" in notice for notice in chosen.notices)


def test_no_install_is_advised_that_would_not_help() -> None:
    # A lone GGUF file: nothing can be made of it, with a quantizer or without.
    chosen = plan(found("Q5_0"), **words(hardware="hybrid"))
    assert chosen.format == "Q5_0"
    assert not any("pip install" in said for said in (*chosen.notices, *(r.reason for r in chosen.rejected)))
    with pytest.raises(InvalidInputError, match="not on offer") as caught:
        plan(found("Q8_0"), format="Q4_K_M")
    assert not isinstance(caught.value, MissingDependencyError)
    assert "Q8_0" in caught.value.hint


@pytest.mark.parametrize(("precise", "format"), [(True, "F16"), (False, "IQ4_XS")])
def test_of_several_files_the_most_precise_or_the_quickest(precise: bool, format: str) -> None:
    chosen = plan(found("IQ4_XS", "Q6_K", "F16"), precision_required=precise)
    assert (chosen.format, chosen.origin) == (format, Origin.FOUND)
    assert chosen.rejected


def test_what_is_there_goes_before_what_can_be_made() -> None:
    chosen = plan(produced("Q5_1") + found("Q5_1"))
    assert chosen.origin is Origin.FOUND


# Explicit wishes.


@pytest.mark.parametrize("format", PLAIN)
@pytest.mark.parametrize("hardware", ["auto", "cpu", "hybrid"])
def test_an_explicit_format_is_taken(format: str, hardware: str) -> None:
    chosen = plan(**words(format=format, hardware=hardware))
    assert chosen.format == format
    assert not any("instead of" in notice for notice in chosen.notices)


@pytest.mark.parametrize("format", KQUANTS)
def test_an_explicit_format_is_never_replaced(format: str) -> None:
    with pytest.raises(MissingDependencyError, match=format) as caught:
        plan(format=format)
    assert "pip install" in caught.value.hint
    assert "Q8_0" in caught.value.hint


def test_a_format_that_is_not_on_offer_lists_what_is() -> None:
    with pytest.raises(InvalidInputError, match="'Q9_9'") as caught:
        plan(produced("Q8_0", "Q4_0"), format="Q9_9")
    assert "Q4_0, Q8_0" in caught.value.hint


@pytest.mark.parametrize("method", [Method.GPTQ, Method.AWQ])
def test_methods_that_cannot_be_served(method: Method) -> None:
    with pytest.raises(InvalidInputError, match=method.value):
        plan(method=method)
    assert plan(method=Method.GGUF).method is Method.GGUF


@pytest.mark.parametrize(("offers", "hint"), [(produced("Q8_0"), "allow_produce"), ([], "another model")])
def test_nothing_to_serve(offers: list[Offer], hint: str) -> None:
    with pytest.raises(NoWeightsError) as caught:
        plan(offers, allow_produce=False)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("asked", "context"), [(None, DEFAULT_CONTEXT), (16, 16), (32_768, 32_768)])
def test_contexts(asked: int | None, context: int) -> None:
    assert plan(context_length=asked).context_length == context


def test_the_default_context_is_within_the_models() -> None:
    small = make_plan(Requirements(), CPU_BOX, replace(MODEL, max_context=512), produced("Q5_1"), CPU_ENGINE)
    assert small.context_length == 512


@pytest.mark.parametrize(("asked", "limit"), [(-1, "16"), (0, "16"), (15, "16"), (32_769, "32768")])
def test_contexts_that_cannot_be(asked: int, limit: str) -> None:
    with pytest.raises(InvalidInputError, match=f"context_length={asked}") as caught:
        plan(context_length=asked)
    assert limit in caught.value.hint


@pytest.mark.parametrize("asked", [-1, 0, 257])
def test_concurrency_that_cannot_be(asked: int) -> None:
    with pytest.raises(InvalidInputError, match=f"concurrency={asked}"):
        plan(concurrency=asked)


def test_threads_can_be_given() -> None:
    chosen = make_plan(Requirements(), CPU_BOX, MODEL, produced("Q5_1"), CPU_ENGINE, threads=3)
    assert chosen.threads == 3


# Memory.


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 22), st.integers(-(1 << 40), 1 << 42), st.integers(1, 64))
def test_slots_take_at_most_a_quarter_of_what_is_free(context: int, per_token: int, available: int, most: int) -> None:
    slots = slots_that_fit(context=context, kv_bytes_per_token=per_token, available=available, most=most)
    assert 1 <= slots <= most
    if slots > 1:
        assert slots * context * per_token <= available / 4
    if slots < most:
        assert (slots + 1) * max(1, context * per_token) > available / 4


def test_the_size_of_the_kv_cache_is_the_one_that_llama_cpp_logs() -> None:
    assert kv_bytes_per_token(24, 2, 64, 64) * 4096 == 48 << 20


# Words.


def words(**given: Any) -> dict[str, Any]:
    """Requirements from words, as the user says them."""
    wanted = pipeline.requirements(**given)
    return {name: getattr(wanted, name) for name in Requirements.__dataclass_fields__}


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title, lambda word: f" {word}\t"])
def test_words_of_any_case(spell: Any) -> None:
    wanted = pipeline.requirements(
        hardware=spell("hybrid"), use_case=spell("production"), method=spell("gguf"), format=spell("q4_k_m")
    )
    assert (wanted.hardware, wanted.use_case) == (Target.HYBRID, UseCase.PRODUCTION)
    assert (wanted.method, wanted.format) == (Method.GGUF, "Q4_K_M")


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("hardware", "tpu", "auto, cpu, gpu, hybrid"),
        ("hardware", None, "auto, cpu, gpu, hybrid"),
        ("hardware", 5, "auto, cpu, gpu, hybrid"),
        ("use_case", "fun", "production, research, personal"),
        ("method", "EXL2", "GGUF, GPTQ, AWQ"),
        ("context_length", "4096", "int"),
        ("context_length", 4096.5, "int"),
        ("concurrency", "2", "int"),
        ("concurrency", [2], "int"),
    ],
)
def test_words_that_are_not_known(name: str, value: Any, known: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name}=") as caught:
        pipeline.requirements(**{name: value})
    assert known in caught.value.hint
