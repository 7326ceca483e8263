"""What a repository offers: formats read from its config, one whole set of weights, and reasons for all else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain.artifacts.listing import Listing, RemoteFile
from qlangchain.artifacts.quantization import read_quantization
from qlangchain.artifacts.variants import Variant, variants
from qlangchain.errors import UnsupportedModelError
from qlangchain.types import Method

COMMIT = "0" * 40
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
QWEN = {"model_type": "qwen2", "torch_dtype": "bfloat16", "hidden_size": 896, "vocab_size": 151936}
GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "desc_act": False,
    "checkpoint_format": "gptq",
}


def listing(*names: str, config: dict[str, Any] | None = None, tags: tuple[str, ...] = (), size: int = 100) -> Listing:
    files = tuple(RemoteFile(name, size, sha256="0" * 64) for name in names)
    return Listing("org/model", COMMIT, files, tags=tags, config=QWEN if config is None else config)


def group(**weights: Any) -> dict[str, Any]:
    inputs = weights.pop("inputs", None)
    return {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}


def compressed(*groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    config_groups = {f"group_{number}": one for number, one in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "config_groups": config_groups, "ignore": ["lm_head"], **more}


INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 128, "strategy": "group"}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
FLOAT4 = {"num_bits": 4, "type": "float", "symmetric": True, "group_size": 16, "strategy": "tensor_group"}

READ = [
    (GPTQ, (Method.GPTQ, "INT4", 4, 128, True, False)),
    ({**GPTQ, "bits": 8, "group_size": -1}, (Method.GPTQ, "INT8", 8, None, True, False)),
    ({"quant_method": "gptq", "bits": 4}, (Method.GPTQ, "INT4", 4, None, None, None)),
    (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
        (Method.AWQ, "INT4", 4, 64, False, None),
    ),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, (Method.AWQ, "INT4", 4, 128, None, None)),
    (compressed(group(**INT4)), (Method.COMPRESSED_TENSORS, "W4A16", 4, 128, True, None)),
    (compressed(group(**INT8, inputs=INT8)), (Method.COMPRESSED_TENSORS, "W8A8", 8, None, True, None)),
    (compressed(group(**INT4, inputs=INT8)), (Method.COMPRESSED_TENSORS, "W4A8", 4, 128, True, None)),
    (compressed(group(**FLOAT8, inputs=FLOAT8)), (Method.COMPRESSED_TENSORS, "FP8", 8, None, True, None)),
    (compressed(group(**FLOAT4, inputs=FLOAT4)), (Method.COMPRESSED_TENSORS, "NVFP4", 4, 16, True, None)),
    (compressed(group(**{**FLOAT4, "group_size": 32})), (Method.COMPRESSED_TENSORS, "MXFP4", 4, 32, True, None)),
    (
        compressed(group(**FLOAT4), group(**FLOAT8, inputs=FLOAT8)),
        (Method.COMPRESSED_TENSORS, "FP8+NVFP4", 4, 16, True, None),
    ),
    (
        {"quant_method": "compressed-tensors", "config_groups": {"W4A16": ["Linear"]}},
        (Method.COMPRESSED_TENSORS, "W4A16", 4, None, None, None),
    ),
    (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        (Method.FP8, "FP8", 8, None, True, None),
    ),
    ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, (Method.FP8, "FP8", 8, None, True, None)),
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, (Method.MXFP4, "MXFP4", 4, 32, True, None)),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, (Method.MODELOPT, "NVFP4", 4, 16, True, None)),
    (
        {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}},
        (Method.MODELOPT, "FP8", 8, None, True, None),
    ),
]

REFUSED = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "while it loads"),
    ({"quant_method": "exl2", "bits": 4.0}, "ExLlamaV2"),
    ({"quant_method": "auto-round", "bits": 4}, "auto-round"),
    ({"quant_method": "something-new", "bits": 4}, "something-new"),
    ({"bits": 4, "group_size": 64}, "quant_method"),
    ({"quant_method": "gptq"}, "bits is None"),
    ({"quant_method": "gptq", "bits": "4"}, "bits is '4'"),
    ({"quant_method": "gptq", "bits": True}, "bits is True"),
    ({"quant_method": "gptq", "bits": 5}, "expected 2, 3, 4, 8"),
    ({"quant_method": "awq", "bits": 8}, "expected 4"),
    ({"quant_method": "compressed-tensors"}, "config_groups"),
    ({"quant_method": "compressed-tensors", "config_groups": {}}, "config_groups"),
    (compressed({"targets": ["Linear"]}), "says nothing about weights"),
    (compressed(group(num_bits=3, type="float")), "3 bits"),
    (compressed(group(num_bits=4, type="float", group_size=64)), "groups of 64"),
    ({"quant_method": "compressed-tensors", "config_groups": {"FANCY": ["Linear"]}}, "FANCY"),
    ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "MIXED_PRECISION"),
    ("gptq", "expected an object"),
    ([], "expected an object"),
]


@pytest.mark.parametrize(("found", "expected"), READ)
def test_a_quantization_config_is_read(found: dict[str, Any], expected: tuple[Any, ...]) -> None:
    one = read_quantization({**QWEN, "quantization_config": found})
    assert (one.scheme, one.format, one.bits, one.group_size, one.symmetric, one.desc_act) == expected


@pytest.mark.parametrize(("found", "reason"), REFUSED)
def test_what_is_not_understood_is_refused_with_the_reason(found: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot be read") as caught:
        read_quantization({**QWEN, "quantization_config": found})
    assert reason in caught.value.message


def test_a_config_is_found_where_multimodal_models_keep_it() -> None:
    assert read_quantization({"text_config": {"quantization_config": GPTQ}}).scheme is Method.GPTQ
    assert read_quantization({"compression_config": compressed(group(**INT4))}).format == "W4A16"
    with pytest.raises(UnsupportedModelError, match="Apple"):
        read_quantization({"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4}})


@pytest.mark.parametrize(
    ("config", "format"),
    [
        ({"torch_dtype": "bfloat16"}, "BF16"), ({"dtype": "float16"}, "F16"), ({"torch_dtype": "torch.float32"}, "F32"),
        ({"text_config": {"dtype": "bfloat16"}}, "BF16"), ({}, "unknown"), ({"dtype": 7}, "unknown"),
    ],
)  # fmt: skip
def test_full_precision_is_what_has_no_quantization(config: dict[str, Any], format: str) -> None:
    one = read_quantization(config)
    assert (one.scheme, one.format) == (Method.NONE, format)


def test_what_engines_refuse_is_noted() -> None:
    one = read_quantization({"quantization_config": {**GPTQ, "desc_act": True, "sym": False, "dynamic": {"a": {}}}})
    assert [note.partition(":")[0].partition(" (")[0] for note in one.notes] == [
        "desc_act=True", "sym=False", "Some layers are stored otherwise",
    ]  # fmt: skip
    assert read_quantization({"quantization_config": {**GPTQ, "desc_act": True, "group_size": -1}}).notes == ()


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("quant_method", "bits", "w_bit", "group_size", "sym", "config_groups", "quant_algo", "quantization", "dynamic",
        "weight_block_size", "sparsity_config", "zero_point")  # fmt: skip
METHODS = ("gptq", "awq", "compressed-tensors", "fp8", "mxfp4", "modelopt", "mlx", "")


@given(
    st.fixed_dictionaries({"quant_method": st.sampled_from(METHODS) | json}),
    st.dictionaries(st.sampled_from(KEYS), json),
)
def test_no_config_makes_it_fail_in_another_way(first: dict[str, Any], more: dict[str, Any]) -> None:
    for found in ({**more, **first}, {**first, **more}, more.get("config_groups")):
        try:
            one = read_quantization({"quantization_config": found})
        except UnsupportedModelError:
            continue
        assert one.format and (one.bits is None or 1 <= one.bits <= 32)


@given(json)
def test_no_group_makes_it_fail_in_another_way(found: Any) -> None:
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": found, "group_1": {"weights": found}}}
    with pytest.raises(UnsupportedModelError):
        read_quantization({"quantization_config": config})


def only(found: Listing) -> Variant:
    offered = variants(found)
    assert len(offered.variants) == 1, offered
    return offered.variants[0]


def names(one: Variant) -> list[str]:
    return [file.name for file in one.files]


def test_a_directory_has_one_set_of_weights_and_what_serving_needs() -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (2, 1)]
    needed = [
        "config.json",
        "generation_config.json",
        *TOKENIZER,
        "chat_template.jinja",
        "model.safetensors.index.json",
    ]
    useless = [
        "consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "original/consolidated.00.pth",
        "original/model-00001-of-00001.safetensors", "metal/model.bin", "pytorch_model.bin", "model.fp16.safetensors",
        "adapter_model.safetensors", "modeling_qwen.py", "image.png", "README.md", "model.onnx", "onnx/model.onnx",
        "tf_model.h5", "flax_model.msgpack", "model.ckpt", "x.pkl", "nested/config.json", "rust_model.ot",
    ]  # fmt: skip
    one = only(listing(*useless, *shards, *needed))
    assert names(one)[:2] == sorted(shards)
    assert set(names(one)) == {*shards, *needed}
    assert (one.scheme, one.format, one.verified) == (Method.NONE, "BF16", False)
    assert (one.weight_bytes, one.size_bytes) == (200, 900)
    assert one.notes == ()


def test_a_quantized_directory_is_named_by_its_config() -> None:
    files = ("model.safetensors", "config.json", "quantize_config.json", *TOKENIZER)
    one = only(listing(*files, config={**QWEN, "quantization_config": GPTQ}, tags=("gptq", "4-bit")))
    assert (one.scheme, one.label, one.bits, one.group_size) == (Method.GPTQ, "INT4", 4, 128)
    assert set(names(one)) == set(files)


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["gptq_model-4bit-128g.safetensors"], ["gptq_model-4bit-128g.safetensors"]),
        (["model.safetensors", "model-00001-of-00002.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "other.safetensors", "mtp.safetensors"], ["model.safetensors"]),
        (["model-00001-of-00001.safetensors", "model.safetensors.index.json"], ["model-00001-of-00001.safetensors"]),
        (
            ["model-00001-of-000001.safetensors", "model.safetensors.index.json", "model-mtp.safetensors",
             "mtp.safetensors"],
            ["model-00001-of-000001.safetensors", "model-mtp.safetensors", "mtp.safetensors"],
        ),
        (
            ["model-00001-of-00001.safetensors", "model-00001-of-00003.safetensors", "model.safetensors.index.json"],
            ["model-00001-of-00001.safetensors"],
        ),
        (["model.safetensors", "model.safetensors.index.json", "model_extra_tensors.safetensors"],
         ["model.safetensors", "model_extra_tensors.safetensors"]),
    ],
)  # fmt: skip
def test_one_set_of_weights_is_taken(files: list[str], weights: list[str]) -> None:
    one = only(listing(*files, "config.json", *TOKENIZER))
    assert [file.name for file in one.weights] == weights


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "number 2 is missing"),
        (["model-00001-of-00001.safetensors"], "model.safetensors.index.json is missing"),
        (["a.safetensors", "b.safetensors"], "several sets"),
        (["adapter_model.safetensors"], "only adapters"),
        (["mtp.safetensors"], "only adapters"),
        (["consolidated.safetensors"], "only adapters"),
        (["original/model.safetensors"], "only adapters"),
        (["model-1-of-1.safetensors", "model-01-of-1.safetensors", "model.safetensors.index.json"], "listed twice"),
    ],
)
def test_an_unclear_or_broken_set_is_refused(files: list[str], reason: str) -> None:
    found = variants(listing(*files, "config.json"))
    assert found.variants == ()
    assert reason in found.refused[0].reason


def test_weights_without_a_readable_config_are_refused() -> None:
    assert "no config.json" in variants(listing("model.safetensors")).refused[0].reason
    assert "not known" in variants(listing("model.safetensors", "config.json", config={})).refused[0].reason


@pytest.mark.parametrize(
    ("more", "tags"),
    [
        ((), ("gptq",)), ((), ("AWQ", "x")), ((), ("mlx",)), (("quantize_config.json",), ()),
        (("hf_quant_config.json",), ()),
    ],
)  # fmt: skip
def test_what_says_that_it_is_quantized_is_never_full_precision(more: tuple[str, ...], tags: tuple[str, ...]) -> None:
    found = variants(listing("model.safetensors", "config.json", *more, tags=tags))
    assert found.variants == ()
    assert "says nothing of a quantization" in found.refused[0].reason


def test_pickles_are_named_where_there_is_nothing_else() -> None:
    assert "pytorch_model.bin" in variants(listing("pytorch_model.bin", "config.json")).refused[0].reason
    assert "no weights" in variants(listing("README.md")).refused[0].reason


def test_gguf_variants_are_hints_and_the_projector_is_never_one() -> None:
    found = variants(
        listing(
            "mmproj-F16.gguf",
            "imatrix.gguf",
            "M-UD-Q4_K_XL.gguf",
            "M-Q8_0.gguf",
            "model.gguf",
            "config.json",
            config={},
        )
    )
    assert [(one.label, one.bits, one.verified) for one in found.variants] == [
        ("UD-Q4_K_XL", 4, False), ("Q8_0", 8, False), ("unknown", None, False),
    ]  # fmt: skip
    assert all(one.projector and one.projector.name == "mmproj-F16.gguf" for one in found.variants)
    assert all("mmproj" not in name and "imatrix" not in name for one in found.variants for name in names(one))
    assert found.variants[2].notes


def test_gguf_and_a_directory_may_share_a_repository() -> None:
    found = variants(listing("M-Q4_0.gguf", "model.safetensors", "config.json", "M-Q8_0-00001-of-00002.gguf"))
    assert [one.scheme for one in found.variants] == [Method.GGUF, Method.NONE]
    assert "missing" in found.refused[0].reason


def test_a_hostile_name_is_refused_even_here() -> None:
    found = variants(listing("../M-Q4_0.gguf", "con/M-Q8_0.gguf", "M-Q6_K.gguf"))
    assert [one.label for one in found.variants] == ["Q6_K"]
    assert len(found.refused) == 2


@given(st.lists(st.sampled_from(["model.safetensors", "model-00001-of-00002.safetensors", "config.json", "M-Q4_0.gguf",
    "model-00002-of-00002.safetensors", "model.safetensors.index.json", "mmproj-F16.gguf", "x.bin", "../evil.gguf",
    "consolidated.safetensors", "mtp.safetensors", "a/b.safetensors", "modeling.py"]), unique=True))  # fmt: skip
def test_any_listing_gives_whole_safe_variants_or_reasons(files: list[str]) -> None:
    found = variants(listing(*files))
    assert found.variants or found.refused
    for one in found.variants:
        assert one.weights and set(one.weights) <= set(one.files) and len(set(names(one))) == len(names(one))
        assert not any(name.endswith((".bin", ".py")) or ".." in name or "mmproj" in name for name in names(one))
