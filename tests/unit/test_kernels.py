"""Which format runs where: vLLM's table, llama.cpp's files, and reasons with the number that decided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain.selection.formats import table
from qlangchain.selection.kernels import supported
from qlangchain.types import Gpu

DATA = table("kernels.toml")
EVERY = sorted({n for row in DATA["row"] for f in row["formats"] for n in DATA["formats"].get(f, [f])} - {"*"})


def card(major: int, minor: int) -> Gpu:
    return Gpu("a card", 1 << 34, 1 << 34, compute_capability=(major, minor))


VOLTA, TURING, AMPERE, ADA, HOPPER, BLACKWELL = (
    card(*capability) for capability in ((7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (12, 0))
)
AMD = Gpu("Instinct MI300X", 192 << 30, 192 << 30, vendor="amd")
APPLE = Gpu("Apple GPU (unified memory)", 1 << 34, 1 << 34, vendor="apple")
AVX512, AVX2 = frozenset({"avx2", "avx512f"}), frozenset({"avx2"})


@pytest.mark.parametrize(
    ("format", "runs", "refuses"),
    [
        ("AWQ-INT4", [TURING, AMPERE, ADA, HOPPER, BLACKWELL], [VOLTA, AMD, APPLE]),
        ("GPTQ-INT4", [VOLTA, TURING, AMPERE, HOPPER], [AMD, card(6, 1)]),
        ("GPTQ-INT8", [TURING, HOPPER], [AMD, None]),
        ("W4A16", [TURING, AMPERE], [VOLTA, AMD]),
        ("W8A8", [TURING, HOPPER], [VOLTA, BLACKWELL, card(10, 0), AMD]),
        ("FP8", [TURING, ADA, HOPPER, BLACKWELL, AMD], [VOLTA, None]),
        ("MXFP4", [AMPERE, HOPPER], [TURING, None]),
        ("NVFP4", [TURING, BLACKWELL], [VOLTA, AMD, None]),
        ("BF16", [VOLTA, HOPPER, AMD, None], [card(6, 1), APPLE]),
        ("Q4_K_M", [], [HOPPER, AMD, None]),
        ("IQ2_XXS", [], [HOPPER, None]),
    ],
)
def test_vllm(format: str, runs: list[Gpu | None], refuses: list[Gpu | None]) -> None:
    for gpu in runs:
        assert supported(format, "vllm", gpu) is None, gpu
    for gpu in refuses:
        why = supported(format, "vllm", gpu)
        assert why, gpu
        assert len(why) > 20


def test_vllm_on_a_cpu() -> None:
    for name in ("GPTQ-INT4", "AWQ-INT4", "W4A16"):
        assert supported(name, "vllm", flags=AVX512) is None
        assert "avx512f" in (supported(name, "vllm", flags=AVX2) or "")
        assert supported(name, "vllm") is None  # flags are not known: not held against it
    assert supported("W8A8", "vllm", flags=AVX2) is None


def test_odd_gptq_is_refused_by_vllm_alone() -> None:
    for odd in ({"desc_act": True}, {"symmetric": False}):
        assert "every platform" in (supported("INT4", "vllm", HOPPER, method="GPTQ", **odd) or "")
        assert supported("INT4", "transformers", HOPPER, method="GPTQ", **odd) is None
        assert supported("INT4", "vllm", HOPPER, method="AWQ", **odd) is None


@pytest.mark.parametrize("gpu", [None, card(5, 2), HOPPER, AMD, APPLE])
def test_llamacpp_runs_every_gguf_and_nothing_else(gpu: Gpu | None) -> None:
    for runtime in ("llamacpp", "llama-cpp-python"):
        for name in ("Q4_K_M", "Q8_0", "F16", "MXFP4", "IQ2_XXS", "UD-Q4_K_XL", "q5_1"):
            assert supported(name, runtime, gpu) is None
        for name in ("AWQ-INT4", "GPTQ-INT4", "FP8", "W4A16"):
            assert "GGUF" in (supported(name, runtime, gpu) or "")


def test_what_is_not_known() -> None:
    imagined = Gpu("imagined GPU", 1 << 34, 1 << 34)
    assert supported("AWQ-INT4", "vllm", imagined) is None
    assert supported("AWQ-INT4", "an engine of mine", HOPPER) is None  # it knows itself best
    assert supported("AWQ-INT4", "remote") is None
    assert "known here" in (supported("no such format", "vllm", HOPPER) or "")


def test_a_reason_has_its_number() -> None:
    why = supported("AWQ-INT4", "vllm", VOLTA) or ""
    assert "7.0" in why
    assert "7.5 (Turing)" in why
    assert "9.0 (Hopper)" in (supported("W8A8", "vllm", BLACKWELL) or "")


def test_the_rows() -> None:
    known = {"runtime", "formats", "nvidia", "nvidia_most", "amd", "apple", "cpu", "cpu_flags", "refused", "instead"}
    for row in DATA["row"]:
        assert set(row) <= known | {"source"}
        assert row["source"]
        assert all(len(row[key]) == 2 for key in ("nvidia", "nvidia_most") if key in row)


@given(
    st.sampled_from(EVERY),
    st.sampled_from(["llamacpp", "vllm", "transformers"]),
    st.tuples(st.integers(1, 9), st.integers(0, 9)),
    st.integers(0, 3),
)
def test_a_newer_card_runs_what_an_older_one_does_up_to_hopper(
    name: str, runtime: str, capability: tuple[int, int], more: int
) -> None:
    newer = min((capability[0] + more, capability[1]), (9, 0))
    if newer >= capability and supported(name, runtime, card(*capability)) is None:
        assert supported(name, runtime, card(*newer)) is None
