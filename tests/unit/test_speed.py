"""Predicted speed: published figures come out again, orders hold, and measured runs correct it openly."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import DATA

from qlangchain.artifacts import records
from qlangchain.errors import InvalidInputError
from qlangchain.selection import speed
from qlangchain.selection.formats import canonical, table
from qlangchain.selection.quality import Verdict
from qlangchain.selection.speed import Load, Measurement, Speed
from qlangchain.types import Gpu, Hardware

A100 = Gpu("A100", 80 << 30, 80 << 30, compute_capability=(8, 0), bandwidth_bytes=2039 * 10**9)
SOME = Hardware(64 << 30, 60 << 30, 8, (A100,), "cpu", {}, frozenset({"avx2", "avx512f"}), 60 * 10**9)
FORMATS = sorted(
    {name for row in table("speed.toml")["runtime"] for name in (*row["formats"], *row.get("kernel_bytes", {}))}
    - {"other"}
)
PUBLISHED = tomllib.loads((DATA / "published_speeds.toml").read_text(encoding="utf-8"))["model"]
# All but the embeddings of Qwen2.5-7B in bytes: 7.07e9 weights are read for a token.
QWEN_7B = {"BF16": 14.14e9, "GPTQ-INT4": 4.48e9, "AWQ-INT4": 4.48e9}


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model["name"])
@pytest.mark.parametrize("runtime", ["vllm", "transformers"])
def test_the_published_table_of_an_a100(runtime: str, model: dict[str, Any]) -> None:
    """Small models too, which are bound by what each layer costs before anything is read."""
    for format, published in model[runtime].items():
        load = speed.on_gpu(A100, SOME, model["gb"][format] * 1e9, 0, model["layers"])
        found = speed.decode([load], format=format, runtime=runtime)
        assert found.expected == pytest.approx(published, rel=0.18), format
        assert found.low < published < found.high


def test_a_tiny_model_is_not_faster_than_its_launches() -> None:
    tiny = speed.on_gpu(A100, SOME, 1e7, 0, 6)
    found = {runtime: speed.decode([tiny], format="BF16", runtime=runtime) for runtime in ("vllm", "transformers")}
    assert found["vllm"].expected < 700
    assert found["transformers"].expected < 250
    assert "launches" in found["transformers"].reasons[0]


def test_four_bits_are_not_four_times_as_fast() -> None:
    """What vLLM gains by AWQ at one request is 1.8 times, not the 3.2 of the bytes."""
    slow, quick = (
        speed.decode([speed.on_gpu(A100, SOME, QWEN_7B[name], 0, 28)], format=name, runtime="vllm").expected
        for name in ("BF16", "AWQ-INT4")
    )
    assert 1.5 < quick / slow < 2.1


def test_a_fifth_of_the_bytes_on_a_slow_memory_decides() -> None:
    """llama.cpp's estimate for a split model: a fifth on a memory 20 times slower is 4.8 times slower overall."""
    fast, slow = 1e12, 5e10
    parts = [(8e9, fast), (2e9, slow)]
    whole = speed.decode([Load("gpu", 1e10, 0, fast)], format="F16", runtime="llamacpp").expected
    split = speed.decode(
        [Load("gpu", parts[0][0], 0, fast), Load("gpu", parts[1][0], 0, slow)], format="F16", runtime="llamacpp"
    ).expected
    assert whole / split == pytest.approx(4.8, rel=0.03)


def test_a_mixture_is_as_fast_as_its_active_part() -> None:
    """gpt-oss-20b: 12.1 GB in memory, of which the experts' 4 of 32 are read."""
    read = speed.bytes_per_token(12.1e9, embedding_bytes=1.2e9, expert_bytes=10.2e9, experts=32, experts_used=4)
    assert read == pytest.approx(12.1e9 - 1.2e9 - 10.2e9 * 28 / 32)
    assert speed.bytes_per_token(1e9, embedding_bytes=2e8, tied=True) == 1e9
    assert speed.bytes_per_token(1e9, embedding_bytes=2e8) == 8e8
    assert speed.bytes_per_token(1e9, expert_bytes=5e8, experts=8, experts_used=9) == 1e9


loads = st.builds(
    Load,
    device=st.sampled_from(["cpu", "gpu"]),
    weight_bytes=st.floats(1e6, 1e12),
    kv_bytes=st.floats(0, 1e11),
    bandwidth_bytes=st.none() | st.floats(1e9, 1e13),
    cores=st.integers(1, 256),
    flags=st.sampled_from([frozenset(), frozenset({"avx2"}), frozenset({"neon"}), frozenset({"sse4_2"})]),
    layers=st.integers(0, 200),
)
formats = st.sampled_from([*FORMATS, "Q9_X", "something else"])
runtimes = st.sampled_from(["llamacpp", "vllm", "transformers", "one of my own"])


@given(st.lists(loads, min_size=1, max_size=3), formats, runtimes, st.floats(1, 20))
def test_orders_hold(parts: list[Load], format: str, runtime: str, times: float) -> None:
    def tokens(changed: list[Load]) -> float:
        return speed.decode(changed, format=format, runtime=runtime).expected

    base = speed.decode(parts, format=format, runtime=runtime)
    assert 0 < base.low <= base.expected <= base.high < math.inf
    assert base.reasons
    first, rest = parts[0], parts[1:]
    roughly = base.expected * (1 - 1e-9)
    if first.bandwidth_bytes:
        assert tokens([replace(first, bandwidth_bytes=first.bandwidth_bytes * times), *rest]) >= roughly
    assert tokens([replace(first, weight_bytes=first.weight_bytes / times), *rest]) >= roughly
    assert tokens([replace(first, kv_bytes=first.kv_bytes / times), *rest]) >= roughly
    assert tokens([replace(first, cores=first.cores * 2), *rest]) >= roughly
    assert tokens([replace(first, layers=first.layers + 10), *rest]) * (1 - 1e-9) <= base.expected


@given(st.floats(1e6, 1e12), st.sampled_from(FORMATS))
def test_an_unknown_bandwidth_is_said_and_widens_the_range(weights: float, format: str) -> None:
    known = speed.decode([Load("gpu", weights, 0, 4.5e11)], format=format, runtime="vllm")
    unknown = speed.decode([Load("gpu", weights)], format=format, runtime="vllm")
    assert "assumed" in unknown.reasons[0]
    assert "assumed" not in known.reasons[0]
    assert unknown.high / unknown.low > known.high / known.low


def test_few_cores_cannot_unpack_what_the_memory_gives() -> None:
    one, many = (
        speed.decode([Load("cpu", 4.9e9, 0, 2e11, cores)], format="Q4_K_M", runtime="llamacpp") for cores in (1, 64)
    )
    assert "1 core can unpack" in one.reasons[0]
    assert "of the bandwidth" in many.reasons[0]
    assert many.expected > 8 * one.expected


def test_what_caches_hold_is_read_faster_than_memory_and_both_may_be_far_off() -> None:
    held, not_held = (
        speed.decode([Load("cpu", size, 0, 1e12)], format="Q8_0", runtime="llamacpp") for size in (1.5e7, 1.7e7)
    )
    assert held.expected > 1.5 * not_held.expected
    assert held.high / held.low == pytest.approx(4)


def test_a_processor_without_vectors_is_slower() -> None:
    quick, slow = (
        speed.decode([Load("cpu", 1e9, 0, 1e11, 1, frozenset({flag}))], format="Q8_0", runtime="llamacpp").expected
        for flag in ("avx2", "sse4_2")
    )
    assert slow < quick / 2


@pytest.mark.parametrize(
    "parts",
    [
        [], [Load("cpu", 0)], [Load("cpu", -1)], [Load("cpu", 1, -1)], [Load("cpu", 1, cores=0)],
        [Load("cpu", 1, layers=-1)], [Load("tpu", 1)],
    ],
)  # fmt: skip
def test_loads_that_cannot_be(parts: list[Load]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        speed.decode(parts, format="Q8_0", runtime="llamacpp")
    assert caught.value.hint


def test_prefill() -> None:
    on_gpu = speed.prefill([speed.on_gpu(A100, SOME, 1e10, 0, 28)], 7e9, gpus=[A100])
    assert 3000 < on_gpu.expected < 30000  # two operations a parameter, a third of 312 TFLOP/s
    on_cpu = speed.prefill([speed.on_cpu(SOME, 1e10, 0, 28)], 7e9)
    assert on_cpu.expected < on_gpu.expected / 50
    assert speed.prefill([speed.on_cpu(SOME, 1e10, 0, 28)], 1e9).expected > on_cpu.expected
    assert speed.prefill([speed.on_gpu(A100, SOME, 1e10, 0, 28)], 7e9).expected < on_gpu.expected  # card not named
    with pytest.raises(InvalidInputError):
        speed.prefill([], 7e9)
    with pytest.raises(InvalidInputError):
        speed.prefill([Load("cpu", 1)], 0)


@given(st.integers(1, 256), st.floats(0, 1), st.floats(0.1, 1e4), st.floats(0.1, 1e6))
def test_throughput_lies_between_one_request_and_its_multiple(
    requests: int, share: float, one: float, ceiling: float
) -> None:
    alone, bound = Speed(one / 2, one, one * 2), Speed(ceiling / 2, ceiling, ceiling * 2)
    found = speed.throughput(alone, bound, requests, kv_share=share)
    assert alone.expected * (1 - 1e-9) <= found.expected <= alone.expected * requests * (1 + 1e-9)
    assert found.expected <= max(bound.expected, alone.expected) * (1 + 1e-9)
    assert found.low <= found.expected <= found.high


# --- correction ---

HERE = speed.machine_of(SOME)


def run(measured: float, *, predicted: float = 10.0, format: str = "Q4_K_M", **changes: str) -> Measurement:
    values = {"machine": HERE, "runtime": "llamacpp", "device": "cpu", "artifact": "aa", "date": "2026-11-22"}
    return Measurement(format=format, predicted=predicted, measured=measured, **{**values, **changes})


def corrected(runs: list[Measurement], artifact: str = "aa", format: str = "Q4_K_M") -> Speed:
    return speed.correct(
        Speed(5, 10, 20, ("said",)), runs, machine=HERE, runtime="llamacpp", device="cpu", format=format,
        artifact=artifact,
    )  # fmt: skip


def test_runs_of_this_machine_correct_the_next_prediction_and_say_so() -> None:
    found = corrected([run(5), run(5.2), run(4.8), run(50, artifact="bb")])
    assert found.expected == pytest.approx(5)
    assert found.correction is not None
    assert (found.correction.factor, found.correction.runs) == (pytest.approx(0.5), 3)
    assert "corrected by 0.50: 3 run(s) of the same artifact" in found.reasons[-1]
    assert found.reasons[0] == "said"
    assert found.high / found.low < 4 / 2


def test_the_nearest_runs_count() -> None:
    other_artifact, other_format = run(20, artifact="bb"), run(5, artifact="cc", format="Q8_0")
    assert corrected([run(10), other_artifact, other_format]).expected == pytest.approx(10)
    assert corrected([other_artifact, other_format]).expected == pytest.approx(20)
    assert corrected([other_format]).expected == pytest.approx(5)
    assert (
        corrected([other_format]).high / corrected([other_format]).low
        > corrected([run(5)]).high / corrected([run(5)]).low
    )


@pytest.mark.parametrize(
    "stranger",
    [
        run(5, machine="another"), run(5, runtime="vllm"), run(5, device="gpu"), run(0.01), run(5000),
        run(5, predicted=0),
    ],
)  # fmt: skip
def test_runs_of_other_machines_and_absurd_ones_do_not(stranger: Measurement) -> None:
    found = corrected([stranger])
    assert (found.expected, found.correction) == (10, None)


def test_one_run_does_not_make_it_certain() -> None:
    assert (
        corrected([run(5)]).high / corrected([run(5)]).low > corrected([run(5)] * 5).high / corrected([run(5)] * 5).low
    )


@given(st.lists(st.floats(0.2, 500), min_size=1, max_size=50))
def test_a_corrected_prediction_lies_among_what_was_measured(measured: list[float]) -> None:
    found = corrected([run(one) for one in measured])
    latest = measured[-32:]
    assert min(latest) * (1 - 1e-9) <= found.expected <= max(latest) * (1 + 1e-9)
    assert found.low <= min(latest) * (1 + 1e-9)
    assert found.high >= max(latest) * (1 - 1e-9)


def test_a_machine_measured_anew_is_another_one() -> None:
    assert speed.machine_of(replace(SOME, bandwidth_bytes=10**9)) != HERE
    assert "A100" in HERE


# --- records ---


def test_runs_and_verdicts_are_kept(tmp_path: Path) -> None:
    verdict = Verdict("dd", "Q4_0", 0.07, None, 0.9, "text", "2026-11-22")
    assert records.recall(tmp_path, Measurement) == []
    assert records.verdict_of(tmp_path, "dd") is None
    assert all(records.remember(tmp_path, one) for one in (run(5), verdict, run(6)))
    assert records.recall(tmp_path, Measurement) == [run(5), run(6)]
    assert records.recall(tmp_path, Verdict) == [verdict]
    assert records.remember(tmp_path, replace(verdict, kl=0.01))
    assert records.verdict_of(tmp_path, "xx", "dd") == replace(verdict, kl=0.01)


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    records.remember(tmp_path, run(5))
    path = tmp_path / "measured/runs.jsonl"
    good = asdict(run(7))
    bad = [
        b"", b"{", b"null", b"[]", b"\xff\xfe\x00", b"[" * 5000, json.dumps({**good, "measured": "x"}).encode(),
        json.dumps({**good, "measured": True}).encode(), json.dumps({**good, "more": 1}).encode(),
        json.dumps({**good, "measured": math.nan}).encode(), json.dumps({**good, "measured": math.inf}).encode(),
        json.dumps({**good, "measured": -1}).encode(), json.dumps({**good, "format": 5}).encode(),
        json.dumps({**good, "measured": 10**300}).encode(), b'{"machine": "' + b"x" * 10000 + b'"}',
    ]  # fmt: skip
    path.write_bytes(path.read_bytes() + b"\n".join(bad) + b'\n{"torn": ')
    assert records.remember(tmp_path, run(6))
    assert records.recall(tmp_path, Measurement) == [run(5), run(6)]


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    store = tmp_path_factory.mktemp("store")
    (store / "measured").mkdir()
    (store / "measured/runs.jsonl").write_bytes(content)
    assert records.remember(store, run(6))
    assert records.recall(store, Measurement)[-1] == run(6)


def test_the_file_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_RECORDS", 300)
    for number in range(1, 1001):
        assert records.remember(tmp_path, run(float(number)))
    kept = [one.measured for one in records.recall(tmp_path, Measurement)]
    assert kept[-1] == 1000
    assert kept == sorted(kept)
    assert 150 <= len(kept) <= 300
    assert [path.name for path in (tmp_path / "measured").iterdir()] == ["runs.jsonl"]


def test_what_cannot_be_kept_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not records.remember(tmp_path / "file", run(5))
    assert records.recall(tmp_path / "file", Measurement) == []
    assert not records.remember(tmp_path, run(5, artifact="x" * 5000))
    assert not records.remember(tmp_path, run(math.nan))
    assert not (tmp_path / "measured").exists()


# --- names ---


@pytest.mark.parametrize(
    ("format", "method", "expected"),
    [
        ("q4_k_m", None, "Q4_K_M"), ("Q4_K", None, "Q4_K_M"), ("UD-Q4_K_XL", "GGUF", "Q4_K_XL"), ("fp16", None, "F16"),
        ("INT4", "AWQ", "AWQ-INT4"), ("INT4", "gptq", "GPTQ-INT4"), ("GPTQ-Int8", None, "GPTQ-INT8"),
        ("gptq-4", None, "GPTQ-INT4"), ("awq-4", None, "AWQ-INT4"), ("INT8", "GPTQ", "GPTQ-INT8"),
        ("4", "GPTQ", "GPTQ-INT4"), ("4bit", "AWQ", "AWQ-INT4"), ("4-bit", "AWQ", "AWQ-INT4"),
        ("AWQ", None, "AWQ-INT4"),
        ("w4a16", "compressed-tensors", "W4A16"), ("FP8-dynamic", None, "FP8"), ("MXFP4_MOE", None, "MXFP4"),
        ("GPTQ-INT4", "GPTQ", "GPTQ-INT4"), ("whatever", None, "WHATEVER"), ("", None, ""),
    ],
)  # fmt: skip
def test_spellings(format: str, method: str | None, expected: str) -> None:
    assert canonical(format, method) == expected


@given(st.text(max_size=20), st.none() | st.sampled_from(["GPTQ", "AWQ", "GGUF", "FP8", "x"]))
def test_any_spelling_is_stable(format: str, method: str | None) -> None:
    once = canonical(format, method)
    assert canonical(once, method) == once
