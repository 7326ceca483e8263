"""Choosing: the table first, then the numbers; what is asked for is done or refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import shape
from unit.inventing import (
    AWQ,
    CPU_BOX,
    CPU_ENGINE,
    GIB,
    GPTQ,
    GPU,
    GPU_BOX,
    GPU_ENGINE,
    KQUANTS,
    MODEL,
    PLAIN,
    TRANSFORMERS,
    VLLM,
    found,
    produced,
    remote,
    whole,
)

from qlangchain import pipeline
from qlangchain.errors import (
    DoesNotFitError,
    HardwareUnavailableError,
    InvalidInputError,
    MissingDependencyError,
    NoWeightsError,
)
from qlangchain.runtimes.vllm_command import gpu_share
from qlangchain.selection.budgets import vllm
from qlangchain.selection.costing import DEFAULT_CONTEXT, weights_of
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.memory import kv_bytes_per_token, slots_that_fit
from qlangchain.selection.plan import Plan
from qlangchain.selection.planner import make_plan, plans
from qlangchain.selection.quality import Verdict
from qlangchain.selection.speed import Measurement, machine_of
from qlangchain.selection.weights import file_bytes
from qlangchain.types import EngineFacts, Gpu, Hardware, Method, Origin, Requirements, Target, UseCase


def plan(
    offers: list[Offer] | None = None,
    machine: Hardware = CPU_BOX,
    engine: EngineFacts | tuple[EngineFacts, ...] = CPU_ENGINE,
    model: ModelFacts = MODEL,
    **wanted: Any,
) -> Plan:
    return make_plan(Requirements(**wanted), machine, model, produced(*PLAIN) if offers is None else offers, engine)


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
    assert not any("instead of" in reason for reason in chosen.reasons)


@pytest.mark.parametrize(("precise", "method"), [(True, Method.AWQ), (False, Method.GPTQ)])
def test_the_tables_gpu_methods_are_taken_where_an_engine_serves_them(precise: bool, method: Method) -> None:
    chosen = plan(
        [*found("Q4_K_M"), AWQ, GPTQ], GPU_BOX, (GPU_ENGINE, VLLM), hardware=Target.GPU, precision_required=precise
    )
    assert (chosen.method, chosen.runtime, chosen.gpu_layers) == (method, "vllm", -1)


@pytest.mark.parametrize(("precise", "row"), [(True, "AWQ INT4"), (False, "GPTQ INT4")])
def test_a_gpu_method_that_is_not_on_offer_is_rejected_with_the_reason(precise: bool, row: str) -> None:
    chosen = plan(
        produced("Q8_0", "Q4_0", *KQUANTS), GPU_BOX, GPU_ENGINE, hardware=Target.GPU, precision_required=precise
    )
    assert (chosen.format, chosen.gpu_layers) == ("Q4_K_M", -1)
    (rejection,) = chosen.rejected
    assert rejection.choice == row
    assert "not on offer" in rejection.reason
    assert any(f"instead of the table's {row}" in reason for reason in chosen.reasons)


def test_production_with_a_gpu_goes_by_the_gpu_s_row() -> None:
    offers, engines = [*found("Q4_K_M"), AWQ], (GPU_ENGINE, VLLM)
    chosen = plan(offers, GPU_BOX, engines, use_case=UseCase.PRODUCTION)
    assert (chosen.method, chosen.runtime) == (Method.AWQ, "vllm")
    assert plan(offers, GPU_BOX, engines, use_case=UseCase.PERSONAL).format == "Q4_K_M"
    assert plan(offers, CPU_BOX, engines, use_case=UseCase.PRODUCTION).format == "Q4_K_M"


def test_research_takes_no_loss_that_can_be_avoided() -> None:
    offers = found("Q4_0", "Q5_1", "Q8_0", "F16")
    assert plan(offers, use_case=UseCase.RESEARCH).format == "F16"
    chosen = plan(found("Q4_0", "Q5_1", "Q8_0"), use_case=UseCase.RESEARCH)
    assert chosen.format == "Q8_0"
    assert any("instead of the table's Q5_1: its quality is 'small loss'" in reason for reason in chosen.reasons)


def test_a_measured_verdict_decides_over_a_published_figure() -> None:
    bad = Verdict("m:Q5_1", "Q5_1", 0.5, None, None, "ab", "2026-01-01")
    facts = (Requirements(), CPU_BOX, MODEL, produced(*PLAIN), CPU_ENGINE)
    assert make_plan(*facts).format == "Q5_1"
    chosen = make_plan(*facts, verdicts=[bad])
    assert chosen.format != "Q5_1"
    assert any("instead of the table's Q5_1" in reason and "0.5" in reason for reason in chosen.reasons)
    better = replace(bad, kl=0.001)
    assert make_plan(*facts, verdicts=[bad, better]).format == "Q5_1"


def test_runs_on_this_machine_correct_the_speed_and_it_says_so() -> None:
    facts = (Requirements(), CPU_BOX, MODEL, produced("Q5_1"), CPU_ENGINE)
    before = make_plan(*facts).estimate
    run = Measurement(machine_of(CPU_BOX), "llamacpp", "cpu", "Q5_1", "x", 10.0, 5.0, "2026-01-01")
    after = make_plan(*facts, runs=[run] * 3).estimate
    assert before and after and before.decode and after.decode
    assert after.decode.expected == pytest.approx(before.decode.expected / 2)
    assert any("corrected by 0.50" in note for note in after.notes)


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


def test_hybrid_without_a_gpu_says_so() -> None:
    chosen = plan(None, hardware=Target.HYBRID)
    assert chosen.gpu_layers == 0
    assert any("hybrid" in notice and "CPU alone" in notice for notice in chosen.notices)


def test_hybrid_splits_the_layers_of_what_is_larger_than_the_gpu() -> None:
    small = replace(GPU_BOX, gpus=(Gpu("GTX 1060", 6 * GIB, 5 * GIB, bandwidth_bytes=192_000_000_000),))
    chosen = plan(produced("Q4_K_M"), small, GPU_ENGINE, hardware=Target.HYBRID)
    assert 0 < chosen.gpu_layers <= 32
    assert chosen.estimate
    assert 0 < chosen.estimate.gpu <= 5 * GIB
    assert any("layers are on the GPU" in reason for reason in chosen.reasons)
    with pytest.raises(DoesNotFitError, match="GPU's memory"):
        plan(produced("Q4_K_M"), small, GPU_ENGINE, hardware=Target.GPU)


@pytest.mark.parametrize("card", [replace(GPU, compute_capability=(3, 5)), replace(GPU, vendor="unheard-of")])
def test_a_gpu_without_a_kernel_is_left_alone_or_refused(card: Gpu) -> None:
    machine = replace(GPU_BOX, gpus=(card,))
    chosen = plan(produced("Q4_K_M"), machine, GPU_ENGINE)
    assert chosen.gpu_layers == 0
    assert any("The GPU is not used: llamacpp has no kernel" in reason for reason in chosen.reasons)
    with pytest.raises(NoWeightsError, match="no kernel"):
        plan(produced("Q4_K_M"), machine, GPU_ENGINE, hardware=Target.GPU)


# Substitutes.


def test_another_format_instead_of_one_that_needs_the_quantizer() -> None:
    chosen = plan(
        produced(*PLAIN) + produced("Q4_K_M", why_not="it is not installed (pip install x)"), **words(hardware="hybrid")
    )
    assert chosen.format in PLAIN
    assert [rejection.choice for rejection in chosen.rejected] == ["Q4_K_M", "Q4_K_M on llamacpp"]
    assert any("instead of Q4_K_M" in notice and "pip install" in notice for notice in chosen.notices)


def test_no_install_is_advised_that_would_not_help() -> None:
    # A lone GGUF file: nothing can be made of it, with a quantizer or without.
    chosen = plan(found("Q5_0"), **words(hardware="hybrid"))
    assert chosen.format == "Q5_0"
    assert not any("pip install" in said for said in (*chosen.notices, *(r.reason for r in chosen.rejected)))
    with pytest.raises(InvalidInputError, match="not on offer") as caught:
        plan(found("Q8_0"), format="Q4_K_M")
    assert not isinstance(caught.value, MissingDependencyError)
    assert "Q8_0" in caught.value.hint


@pytest.mark.parametrize(("precise", "least"), [(True, 2), (False, 4)])
def test_the_floor_of_quality(precise: bool, least: int) -> None:
    chosen = plan(found("Q2_K", "IQ4_XS", "Q6_K", "F16"), precision_required=precise)
    assert chosen.estimate
    assert chosen.estimate.rank <= least
    assert chosen.rejected
    low = next(one for one in chosen.runner_ups if one.format == "Q2_K")
    assert (f"below {'small loss'!r}" in low.why) == precise


def test_what_is_there_goes_before_what_can_be_made() -> None:
    chosen = plan(produced("Q5_1") + found("Q5_1"))
    assert chosen.origin is Origin.FOUND


def test_the_trusted_publisher_goes_before_a_byte_less() -> None:
    other, author = remote("Q5_1", trust=2, size=GIB - 1000), remote("Q5_1", trust=0, size=GIB)
    assert plan([other, replace(author, key="hub:1")]).source == "hub:1"


def test_much_less_to_fetch_goes_before_the_table() -> None:
    chosen = plan([*produced("Q5_1", fetch=40 * GIB), remote("Q4_K_M", size=4 * GIB)])
    assert (chosen.format, chosen.origin) == ("Q4_K_M", Origin.DOWNLOADED)
    assert "to fetch and write" in chosen.runner_ups[0].why


def test_a_disk_without_room() -> None:
    full = replace(CPU_BOX, disk_free=GIB)
    with pytest.raises(NoWeightsError, match=r"1\.0 GiB are free"):
        plan([remote("Q5_1", size=4 * GIB)], full)
    assert plan([remote("Q5_1", size=4 * GIB), *found("Q4_0")], full).format == "Q4_0"


# Explicit wishes.


@pytest.mark.parametrize("format", PLAIN)
@pytest.mark.parametrize("hardware", ["auto", "cpu", "hybrid"])
def test_an_explicit_format_is_taken(format: str, hardware: str) -> None:
    chosen = plan(**words(format=format, hardware=hardware))
    assert chosen.format == format
    assert not any("instead of" in said for said in (*chosen.notices, *chosen.reasons))


@pytest.mark.parametrize("format", KQUANTS)
def test_an_explicit_format_is_never_replaced(format: str) -> None:
    offers = produced(*PLAIN) + produced(*KQUANTS, why_not="needs the quantizer (pip install x)")
    with pytest.raises(MissingDependencyError, match=format) as caught:
        plan(offers, format=format)
    assert "pip install" in str(caught.value)
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


def test_nothing_that_is_installed() -> None:
    absent = replace(VLLM, installed=False, install_hint="Run it.", gpu=False)
    with pytest.raises(MissingDependencyError, match="not installed"):
        plan([AWQ], CPU_BOX, absent)


@pytest.mark.parametrize(("asked", "context"), [(None, DEFAULT_CONTEXT), (16, 16), (32_768, 32_768)])
def test_contexts(asked: int | None, context: int) -> None:
    assert plan(context_length=asked).context_length == context


def test_the_default_context_is_within_the_models() -> None:
    small = ModelFacts("m", replace(MODEL.architecture, max_context=512))
    assert plan(model=small).context_length == 512


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


def test_with_less_and_less_memory_requests_then_the_cache_then_the_context_shrink() -> None:
    seen = []
    with pytest.raises(DoesNotFitError, match=r"Q4_0 on llamacpp.*are missing") as caught:
        for free in range(40 * GIB, 4 * GIB, -(GIB >> 3)):
            chosen = plan(found("Q4_0", size=4 * GIB), replace(CPU_BOX, memory_available=free))
            seen.append((chosen.context_length, chosen.kv_type == "f16", chosen.slots))
    assert 0 < caught.value.missing_bytes < GIB
    assert seen == sorted(seen, reverse=True)
    assert {context for context, _, _ in seen} == {8192, 4096, 2048}
    assert {slots for _, _, slots in seen} == {1, 2, 4, 8}


def test_a_context_that_was_asked_for_is_not_shortened() -> None:
    tight = replace(CPU_BOX, memory_available=6 * GIB)
    assert plan(found("Q4_0", size=4 * GIB), tight).context_length < 32_768
    with pytest.raises(DoesNotFitError, match="32,768 tokens") as caught:
        plan(found("Q4_0", size=4 * GIB), tight, context_length=32_768)
    assert "context_length=" in caught.value.hint


def test_a_cache_in_eight_bits_is_not_for_models_that_end_their_engine() -> None:
    phi = ModelFacts("phi", replace(MODEL.architecture, name="phi3"))
    for free in range(16 * GIB, 5 * GIB, -(GIB >> 2)):
        assert plan(found("Q4_0", size=4 * GIB), replace(CPU_BOX, memory_available=free), model=phi).kv_type == "f16"


def test_vllm_takes_its_share_of_the_gpu_and_never_more() -> None:
    chosen = plan([AWQ], GPU_BOX, VLLM, hardware=Target.GPU, context_length=8192)
    assert chosen.estimate
    assert chosen.estimate.parts["kv"] > 0
    assert chosen.estimate.gpu <= GPU_BOX.gpus[0].free_bytes
    small = replace(GPU_BOX, gpus=(replace(GPU_BOX.gpus[0], total_bytes=6 * GIB, free_bytes=5 * GIB),))
    with pytest.raises(DoesNotFitError, match="vLLM's share"):
        plan([AWQ], small, VLLM, hardware=Target.GPU)


def test_a_plan_counts_with_the_share_of_the_gpu_that_vllm_is_told_to_take() -> None:
    card = replace(GPU_BOX.gpus[0], total_bytes=24 * GIB, free_bytes=9 * GIB)
    told = gpu_share((card,))
    assert told == pytest.approx(0.35)
    fits = vllm(MODEL.architecture, weights_of(AWQ, MODEL), 24 * GIB, context=8192, utilization=told)
    longest = fits.tokens
    box = replace(GPU_BOX, gpus=(card,))
    assert plan([AWQ], box, VLLM, hardware=Target.GPU, context_length=longest).context_length == longest
    with pytest.raises(DoesNotFitError, match="vLLM's share"):
        plan([AWQ], box, VLLM, hardware=Target.GPU, context_length=longest + 16)


def test_transformers_serves_one_request_at_a_time() -> None:
    chosen = plan([whole("BF16")], CPU_BOX, TRANSFORMERS)
    assert (chosen.runtime, chosen.slots, chosen.gpu_layers) == ("transformers", 1, 0)


def test_a_mixture_keeps_its_experts_on_the_cpu_before_whole_layers() -> None:
    mixture = ModelFacts("mixture", shape("qwen3-30b-a3b"))
    offers = [replace(offer, size_bytes=file_bytes(mixture.architecture, "Q4_K_M")) for offer in produced("Q4_K_M")]
    card = replace(GPU, total_bytes=12 * GIB, free_bytes=12 * GIB, bandwidth_bytes=360 * 10**9)
    chosen = plan(offers, replace(CPU_BOX, gpus=(card,)), GPU_ENGINE, model=mixture, concurrency=1)
    assert chosen.gpu_layers == -1
    assert 0 < chosen.cpu_experts < len(mixture.architecture.layers)
    assert any(f"the experts of {chosen.cpu_experts} of 48" in reason for reason in chosen.reasons)
    assert chosen.estimate and chosen.estimate.decode
    assert Plan.from_json(chosen.to_json()) == chosen
    # As many bytes on the card as whole layers are far slower: all of their experts' bytes, an eighth of them read.
    layers = plan(offers, replace(CPU_BOX, gpus=(card,)), GPU_ENGINE, model=mixture, concurrency=1, gpu_layers=24)
    assert layers.cpu_experts == 0
    assert layers.estimate and layers.estimate.decode
    assert chosen.estimate.decode.expected > 1.2 * layers.estimate.decode.expected
    steps = plans(Requirements(concurrency=1), replace(CPU_BOX, gpus=(card,)), mixture, offers, GPU_ENGINE)
    ways = list(dict.fromkeys((step.gpu_layers, step.cpu_experts) for step in steps))
    assert ways == [(-1, chosen.cpu_experts), (-1, 48), (24, 48), (0, 0)]


def test_what_is_looked_up_on_the_cpu_does_not_slow_a_model_that_is_all_on_the_gpu() -> None:
    """Of the embedding, which stays in the machine's memory, one row is read for a token."""
    chosen = plan(found("Q4_K_M"), GPU_BOX, GPU_ENGINE, concurrency=1)
    assert chosen.gpu_layers == -1
    assert chosen.estimate and chosen.estimate.decode
    assert all(not note.startswith("cpu:") for note in chosen.estimate.notes)
    assert chosen.estimate.decode.expected > 80


@pytest.mark.parametrize("format", ["Q4_K_M", "Q8_0"])
def test_hybrid_means_an_engine_that_can_divide_a_model(format: str) -> None:
    offers = [*found(format), AWQ, whole("BF16", 12 * GIB)]
    for use_case in UseCase:
        chosen = plan(offers, GPU_BOX, (GPU_ENGINE, VLLM), hardware=Target.HYBRID, use_case=use_case)
        if use_case is not UseCase.RESEARCH or format == "Q8_0":
            assert chosen.runtime == "llamacpp", use_case
            assert any("divide" in one.why for one in chosen.runner_ups) or use_case is UseCase.RESEARCH


def test_production_is_served_by_vllm_where_it_can_use_the_gpu() -> None:
    """On Volta it has no kernel for the table's AWQ; transformers, which could, answers one request at a time."""
    volta = replace(GPU, name="V100", compute_capability=(7, 0), total_bytes=32 * GIB, free_bytes=32 * GIB)
    engines = (GPU_ENGINE, VLLM, replace(TRANSFORMERS, gpu=True))
    offers = [*found("Q4_K_M"), AWQ, GPTQ]
    chosen = plan(offers, replace(CPU_BOX, gpus=(volta,)), engines, use_case=UseCase.PRODUCTION)
    assert (chosen.runtime, chosen.method) == ("vllm", Method.GPTQ)
    assert any("instead of the table's AWQ INT4" in reason for reason in chosen.reasons)
    personal = plan(offers, replace(CPU_BOX, gpus=(volta,)), (GPU_ENGINE,), use_case=UseCase.PRODUCTION)
    assert personal.runtime == "llamacpp"


def test_two_cards_are_counted_together_each_with_its_own_overhead() -> None:
    card = Gpu("A", 8 * GIB, 7 * GIB)
    one, two = (
        plan(produced("Q8_0"), replace(GPU_BOX, gpus=cards), GPU_ENGINE, hardware=Target.HYBRID)
        for cards in ((card,), (card, card))
    )
    assert one.estimate and two.estimate
    assert 0 < one.gpu_layers < 33
    assert two.gpu_layers == -1
    assert 7 * GIB < two.estimate.gpu_free < 14 * GIB


def test_constraints_that_contradict_each_other_say_which_to_leave_out() -> None:
    with pytest.raises(InvalidInputError, match=r"method='AWQ' with format='Q4_0'"):
        plan([*found("Q4_0"), AWQ], GPU_BOX, (GPU_ENGINE, VLLM), method=Method.AWQ, format="Q4_0")
    with pytest.raises(NoWeightsError, match="vllm does not serve GGUF weights") as caught:
        plan(found("Q4_0") * 2, GPU_BOX, VLLM, runtime="vllm", format="Q4_0")
    assert caught.value.message.count("does not serve") == 1
    assert caught.value.hint.startswith("Leave out runtime= or format=")


def test_no_model_is_the_default_for_the_memory_or_the_demo_with_a_notice() -> None:
    chosen = pipeline.plan(offline=True)
    assert chosen.model == "qlangchain-demo"
    assert "embedded demo model answers" in chosen.notices[0]
    assert not pipeline.plan("demo", offline=True).notices


def test_a_machine_that_is_none() -> None:
    with pytest.raises(InvalidInputError, match="machine='big'"):
        pipeline.plan("demo", machine="big")  # type: ignore[arg-type]


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
        ("precision_required", "no", "True or False"),
    ],
)
def test_words_that_are_not_known(name: str, value: Any, known: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name}=") as caught:
        pipeline.requirements(**{name: value})
    assert known in caught.value.hint


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Hardware(-1, 0, 2), "memory_total=-1 cannot be"),
        (Hardware(1 << 80, 0, 2), "memory_total=.* cannot be"),
        (Hardware(8 * GIB, GIB, 0), "cores=0 cannot be"),
        (Hardware(GIB, 8 * GIB, 2), "memory_available=8,589,934,592 is more than memory_total=1,073,741,824"),
        (Hardware(8 * GIB, GIB, 2, (Gpu("card", GIB, 2 * GIB),)), "card: free_bytes=.* is more than total_bytes"),
    ],
)
def test_machines_that_cannot_be(machine: Hardware, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        pipeline.plan("demo", hardware=machine)
    assert caught.value.hint
