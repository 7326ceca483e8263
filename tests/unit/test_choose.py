"""The table that the project began with, to the letter."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from qlangchain import choose_quantization_method
from qlangchain.errors import InvalidInputError
from qlangchain.types import Target, UseCase

CPU = ["CPU 推理优化", "无需 GPU", "部署简单"]
HYBRID = {"method": "GGUF", "format": "Q4_K_M", "library": "llama.cpp", "pros": ["灵活分配", "CPU+GPU 混合"]}
TABLE: list[tuple[str, bool, dict[str, Any]]] = [
    ("cpu", True, {"method": "GGUF", "format": "Q5_1", "library": "llama.cpp", "pros": CPU}),
    ("cpu", False, {"method": "GGUF", "format": "Q4_0", "library": "llama.cpp", "pros": CPU}),
    ("gpu", True, {"method": "AWQ", "format": "INT4", "library": "vllm/awq", "pros": ["精度更好", "推理速度快"]}),
    (
        "gpu",
        False,
        {"method": "GPTQ", "format": "INT4", "library": "transformers", "pros": ["量化速度快", "兼容性好"]},
    ),
    ("hybrid", True, HYBRID),
    ("hybrid", False, HYBRID),
]
USE_CASES = ["production", "research", "personal"]


@pytest.mark.parametrize("use_case", USE_CASES)
@pytest.mark.parametrize(("hardware", "precise", "row"), TABLE)
def test_the_table(use_case: str, hardware: str, precise: bool, row: dict[str, Any]) -> None:
    assert choose_quantization_method(use_case, hardware, precise) == row
    assert choose_quantization_method(use_case=use_case, hardware=hardware, precision_required=precise) == row


@pytest.mark.parametrize(("hardware", "row"), [(hardware, row) for hardware, precise, row in TABLE if precise])
def test_precision_is_required_unless_said_otherwise(hardware: str, row: dict[str, Any]) -> None:
    assert choose_quantization_method("personal", hardware) == row


@pytest.mark.parametrize("spell", [str.upper, str.title, str.swapcase, lambda word: f" {word}\n"])
@pytest.mark.parametrize(("hardware", "precise", "row"), TABLE)
def test_letters_of_any_case(spell: Any, hardware: str, precise: bool, row: dict[str, Any]) -> None:
    for use_case in USE_CASES:
        assert choose_quantization_method(spell(use_case), spell(hardware), precise) == row


def test_the_vocabulary_is_understood_as_well() -> None:
    assert choose_quantization_method(UseCase.RESEARCH, Target.HYBRID) == HYBRID


@pytest.mark.parametrize("hardware", ["", "tpu", "auto", "cpus", "gpu cpu", None, 1, ["cpu"], b"cpu"])
def test_unknown_hardware_lists_the_known(hardware: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        choose_quantization_method("personal", hardware)
    assert isinstance(caught.value, ValueError)
    assert repr(hardware) in str(caught.value)
    for word in ("gpu", "cpu", "hybrid"):
        assert word in caught.value.hint


@pytest.mark.parametrize("use_case", ["", "fun", "prod", None, 0, ("personal",)])
@pytest.mark.parametrize("hardware", ["cpu", "gpu", "hybrid"])
def test_unknown_use_cases_list_the_known(use_case: Any, hardware: str) -> None:
    with pytest.raises(ValueError, match="use_case=") as caught:
        choose_quantization_method(use_case, hardware)
    for word in USE_CASES:
        assert word in str(caught.value)


@pytest.mark.parametrize(("hardware", "precise", "row"), TABLE)
def test_each_answer_is_the_callers_own(hardware: str, precise: bool, row: dict[str, Any]) -> None:
    before = copy.deepcopy(row)
    mine = choose_quantization_method("personal", hardware, precise)
    mine["pros"].append("changed")
    mine["method"] = "changed"
    for other, other_precise, expected in TABLE:
        if other == hardware and other_precise == precise:
            assert expected == before
        assert choose_quantization_method("personal", other, other_precise) == expected
