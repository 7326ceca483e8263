"""Arguments of the replaced classes: every one has its fate, and none is ignored in silence."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest

from qlangchain.compat import (
    LLM,
    VLLM,
    ChatLlamaCpp,
    Llama,
    LlamaCpp,
    LlamaCppEmbeddings,
    SamplingParams,
    arguments,
    tables,
)
from qlangchain.compat.arguments import Fate
from qlangchain.errors import InvalidInputError, MissingDependencyError, QlangchainWarning, UnsupportedRequestError
from qlangchain.models import base
from qlangchain.selection.architecture import from_config
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.ladder import ladder
from qlangchain.selection.plan import Plan
from qlangchain.selection.planner import make_plan
from qlangchain.types import EngineFacts, Gpu, Hardware, Method, Origin, Requirements, Target

README = Path(__file__).parents[2] / "README.md"
START = "<!-- compat table: generated from qlangchain/compat/tables.py, checked by tests/unit/test_compat.py -->\n"
END = "<!-- end of compat table -->"

# The constructors' arguments with their defaults, as langchain-community 0.4.2 and llama-cpp-python 0.3.36 have them.
_FILE = {"model_path": "m.gguf"}
_COMMON = {
    "client": None, "n_ctx": 512, "n_parts": -1, "seed": -1, "f16_kv": True, "logits_all": False, "vocab_only": False,
    "use_mlock": False, "n_threads": None, "n_gpu_layers": None,
}  # fmt: skip
_TEXT = {
    **_FILE, **_COMMON, "lora_base": None, "lora_path": None, "suffix": None, "max_tokens": 256, "temperature": 0.8,
    "top_p": 0.95, "logprobs": None, "echo": False, "stop": [], "repeat_penalty": 1.1, "top_k": 40,
    "last_n_tokens_size": 64, "use_mmap": True, "rope_freq_scale": 1.0, "rope_freq_base": 10000.0, "model_kwargs": {},
    "streaming": True, "grammar_path": None, "grammar": None,
}  # fmt: skip
_LLAMA = {
    **_FILE, "n_gpu_layers": 0, "split_mode": None, "main_gpu": None, "tensor_split": None, "vocab_only": False,
    "use_mmap": True, "use_mlock": False, "kv_overrides": None, "seed": 0xFFFFFFFF, "n_ctx": 512, "n_threads": None,
    "n_threads_batch": None, "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1, "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0, "yarn_ext_factor": -1.0, "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0, "yarn_orig_ctx": 0, "logits_all": False, "embedding": False, "offload_kqv": True,
    "flash_attn": False, "op_offload": None, "swa_full": None, "no_perf": False, "last_n_tokens_size": 64,
    "lora_base": None, "lora_scale": 1.0, "lora_path": None, "numa": False, "chat_format": None, "chat_handler": None,
    "draft_model": None, "tokenizer": None, "type_k": None, "type_v": None, "spm_infill": False,
}  # fmt: skip
_VLLM = {
    "model": "m.gguf", "tensor_parallel_size": 1, "trust_remote_code": False, "n": 1, "best_of": None,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "temperature": 1.0, "top_p": 1.0, "top_k": -1,
    "use_beam_search": False, "stop": None, "ignore_eos": False, "max_new_tokens": 512, "logprobs": None,
    "dtype": "auto", "download_dir": None, "vllm_kwargs": {}, "client": None,
}  # fmt: skip
# vLLM 0.32: LLM and SamplingParams.
_LLM = {
    "model": "m.gguf", "runner": "auto", "convert": "auto", "tokenizer": None, "tokenizer_mode": "auto",
    "skip_tokenizer_init": False, "trust_remote_code": False, "allowed_local_media_path": "",
    "tensor_parallel_size": 1, "dtype": "auto", "quantization": None, "revision": None, "tokenizer_revision": None,
    "chat_template": None, "seed": 0, "cpu_offload_gb": 0, "enforce_eager": False, "disable_custom_all_reduce": False,
    "hf_token": None, "hf_overrides": None, "mm_processor_kwargs": None, "pooler_config": None,
    "structured_outputs_config": None, "kv_cache_memory_bytes": None, "compilation_config": None,
    "quantization_config": None, "logits_processors": None,
}  # fmt: skip
_SAMPLING_PARAMS = {
    "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "temperature": 1.0,
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None, "stop": None, "stop_token_ids": None, "ignore_eos": False,
    "max_tokens": 16, "min_tokens": 0, "logprobs": None, "prompt_logprobs": None, "detokenize": True,
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "include_stop_str_in_output": False,
    "structured_outputs": None, "logit_bias": None, "allowed_token_ids": None, "extra_args": None, "bad_words": None,
}  # fmt: skip
DEFAULTS: dict[Any, dict[str, Any]] = {
    LlamaCpp: _TEXT,
    ChatLlamaCpp: {**_TEXT, "stop": None},
    LlamaCppEmbeddings: {**_FILE, **_COMMON, "f16_kv": False, "device": None},
    Llama: _LLAMA,
    VLLM: _VLLM,
    LLM: _LLM,
    SamplingParams: _SAMPLING_PARAMS,
}
REQUIRED: dict[Any, dict[str, Any]] = {VLLM: {"model": "m.gguf"}, LLM: {"model": "m.gguf"}, SamplingParams: {}}
NO_VLLM = r"(VLLM|LLM): (there is no vLLM here|vLLM does not serve GGUF)"
# Named there too, with defaults that are worth a word here (n_batch=8, verbose=True).
ANNOUNCED = {"n_batch", "n_ubatch", "verbose"}


@pytest.fixture(autouse=True)
def _fresh_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_told", set())


def test_the_table_in_the_readme_is_the_code_s() -> None:
    there = README.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    shown = arguments.markdown(tables.README)
    assert there == shown, f"replace the table in the README by:\n{shown}"


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_every_argument_has_its_fate_and_the_old_defaults_ask_for_nothing(kind: Any) -> None:
    defaults = DEFAULTS[kind]
    known = tables.README[kind.__name__]
    assert {*defaults, *(ANNOUNCED & set(known))} <= set(known)
    with warnings.catch_warnings():
        if kind in (VLLM, LLM):
            warnings.filterwarnings("ignore", message=NO_VLLM, category=QlangchainWarning)
        kind(**defaults)


@pytest.mark.parametrize("known", tables.README.values(), ids=list(tables.README))
def test_a_reason_is_given_for_all_that_is_not_kept(known: arguments.Table) -> None:
    for argument in known.values():
        assert argument.note or argument.fate is Fate.KEPT, argument.name
        assert argument.hint or argument.fate is not Fate.REFUSED, argument.name
        assert argument.becomes or argument.fate is not Fate.TRANSLATED or argument.name.endswith("_kwargs")


@pytest.mark.parametrize("owner", tables.README)
def test_what_is_refused_raises_with_a_hint_and_what_is_idle_warns_once(owner: str) -> None:
    kind = {kind.__name__: kind for kind in DEFAULTS}[owner]
    required = REQUIRED.get(kind, _FILE)
    warnings.filterwarnings("ignore", message=NO_VLLM, category=QlangchainWarning)
    for argument in tables.README[owner].values():
        asking = {**required, argument.name: 7}
        if argument.fate is Fate.REFUSED:
            with pytest.raises(UnsupportedRequestError, match=f"{owner} cannot honour {argument.name}=7") as caught:
                kind(**asking)
            assert caught.value.hint
        elif argument.fate is Fate.NO_EFFECT:
            with pytest.warns(
                QlangchainWarning, match=f"{owner}: these arguments have no effect here: {argument.name}=7"
            ):
                kind(**asking)
            kind(**asking)  # a second warning would be an error


def test_what_has_no_effect_is_announced_together() -> None:
    with pytest.warns(QlangchainWarning) as caught:
        LlamaCpp(model_path="m.gguf", n_batch=8, n_ubatch=8, use_mlock=True)
    assert len(caught) == 1
    assert "n_batch=8, n_ubatch=8 (" in str(caught[0].message)
    assert "use_mlock=True (" in str(caught[0].message)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lora_path", "a.bin"),
        ("grammar_path", "g.gbnf"),
        ("grammar", 'root ::= "x"'),
        ("echo", True),
        ("suffix", "."),
        ("rope_freq_base", 1e6),
        ("rope_freq_scale", 0.5),
        ("last_n_tokens_size", 128),
        ("vocab_only", True),
        ("model_kwargs", {"type_k": 8}),
        ("model_kwargs", {"chat_format": "llama-2"}),
    ],
)
@pytest.mark.parametrize("kind", [LlamaCpp, ChatLlamaCpp])
def test_what_would_change_answers_is_refused(kind: Any, argument: str, value: Any) -> None:
    with pytest.raises(UnsupportedRequestError, match="cannot honour"):
        kind(model_path="m.gguf", **{argument: value})


@pytest.mark.parametrize(
    "given",
    [
        {"trust_remote_code": True},
        {"n": 2},
        {"best_of": 3},
        {"use_beam_search": True},
        {"ignore_eos": True},
        {"quantization": "awq"},
        {"vllm_kwargs": {"quantization": "gptq"}},
        {"vllm_kwargs": {"enable_lora": True}},
    ],
)
def test_vllm_refuses_what_would_change_answers(given: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedRequestError):
        VLLM(model="m.gguf", **given)


@pytest.mark.parametrize("kind", [LlamaCpp, ChatLlamaCpp, LlamaCppEmbeddings, Llama])
def test_unknown_arguments_are_refused_with_the_one_that_was_meant(kind: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"{kind.__name__} does not take n_thread") as caught:
        kind(model_path="m.gguf", n_thread=4)
    assert "n_threads" in caught.value.hint


def test_unknown_arguments_in_further_dictionaries_are_refused_too() -> None:
    with pytest.raises(InvalidInputError, match="does not take flash_attention"):
        LlamaCpp(model_path="m.gguf", model_kwargs={"flash_attention": True})
    with pytest.raises(InvalidInputError, match="no dictionary"):
        LlamaCpp(model_path="m.gguf", model_kwargs=["n_batch"])
    with pytest.raises(InvalidInputError, match="does not take gpu_memory_utilisation"):
        VLLM(model="m.gguf", vllm_kwargs={"gpu_memory_utilisation": 0.9})


@pytest.mark.parametrize("kind", [LlamaCpp, ChatLlamaCpp, LlamaCppEmbeddings])
def test_a_model_is_needed(kind: Any) -> None:
    with pytest.raises(InvalidInputError, match="needs model_path="):
        kind()
    with pytest.raises(InvalidInputError, match="twice"):
        kind(model_path="a.gguf", model="b.gguf")


def test_vllm_needs_a_model_or_a_server() -> None:
    with pytest.raises(InvalidInputError, match="VLLM needs model="):
        VLLM()


def test_arguments_become_ours() -> None:
    llm = LlamaCpp(
        model_path="m.gguf", n_ctx=1024, n_threads=3, n_gpu_layers=35, seed=-1, top_k=-1, max_tokens=-1, stop="x"
    )
    assert (llm.model, llm.model_path) == ("m.gguf", "m.gguf")
    assert (llm.context_length, llm.threads, llm.gpu_layers) == (1024, 3, 35)
    assert (llm.seed, llm.top_k, llm.max_tokens, llm.stop) == (None, 0, None, ["x"])
    assert LlamaCpp(model_path="m.gguf", n_ctx=0, n_gpu_layers=-5, seed=7).model_dump(
        include={"context_length", "gpu_layers", "seed"}
    ) == {"context_length": None, "gpu_layers": -1, "seed": 7}
    assert llm._requirements().threads == 3


def test_defaults_of_sampling_are_the_old_ones() -> None:
    expected = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "repeat_penalty": 1.1, "max_tokens": 256}
    for kind in (LlamaCpp, ChatLlamaCpp):
        sent = kind(model_path="m.gguf")._sampling(None, {})
        assert {name: sent[name] for name in expected} == expected
        assert {name for name, value in sent.items() if value is not None} == set(expected)


def test_vllm_samples_from_all_tokens_as_vllm_does() -> None:
    with pytest.warns(QlangchainWarning, match="llama.cpp serves m.gguf as it is"):
        sent = VLLM(model="m.gguf", stop=["x"])._sampling(None, {})
    assert (sent["top_k"], sent["min_p"], sent["top_p"], sent["temperature"]) == (0, 0.0, 1.0, 1.0)
    assert (sent["max_tokens"], sent["stop"]) == (512, ["x"])


def test_logprobs_of_the_chat_model() -> None:
    chat = ChatLlamaCpp(model_path="m.gguf", logprobs=3)
    assert (chat.logprobs, chat.top_logprobs) == (True, 3)
    assert ChatLlamaCpp(model_path="m.gguf", logprobs=0).logprobs is None


def test_threads_of_prompts_are_those_of_answers() -> None:
    LlamaCpp(model_path="m.gguf", n_threads=8, n_threads_batch=8)  # a warning would be an error
    with pytest.warns(QlangchainWarning, match="n_threads_batch=8"):
        LlamaCpp(model_path="m.gguf", n_threads=4, n_threads_batch=8)


@pytest.mark.parametrize(("asked", "named"), [(1, "mean"), (2, "cls"), (3, "last"), (-1, None)])
def test_pooling_types_have_names(asked: int, named: str | None) -> None:
    assert LlamaCppEmbeddings(model_path="m.gguf", pooling_type=asked).pooling == named


@pytest.mark.parametrize("asked", [0, 4, "none"])
def test_pooling_that_gives_no_single_vector_is_refused(asked: Any) -> None:
    with pytest.raises(ValueError, match="pooling"):
        LlamaCppEmbeddings(model_path="m.gguf", pooling_type=asked)


@pytest.mark.parametrize("kind", [LlamaCpp, ChatLlamaCpp, LlamaCppEmbeddings])
def test_objects_can_be_copied_pickled_and_made_again(kind: Any) -> None:
    model = kind(model_path="m.gguf", n_ctx=1024, n_threads=2)
    assert pickle.loads(pickle.dumps(model)) == model
    assert copy.deepcopy(model) == model
    again = kind(**{name: getattr(model, name) for name in kind.model_fields})
    assert again == model


def test_configurable_fields_make_new_objects() -> None:
    from langchain_core.runnables import ConfigurableField

    llm = LlamaCpp(model_path="m.gguf", n_threads=2)
    field = ConfigurableField(id="heat")
    chosen, _ = llm.configurable_fields(temperature=field).prepare({"configurable": {"heat": 0.1}})
    assert (chosen.temperature, chosen.threads, chosen.max_tokens) == (0.1, 2, 256)


# VLLM and the weights


def checkpoint(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("own", "asked", "format"),
    [
        ("bfloat16", "auto", "BF16"),
        ("float16", "auto", "F16"),
        ("float32", "auto", "F16"),
        ("bfloat16", "half", "F16"),
        ("bfloat16", "float32", "F32"),
    ],
)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_full_precision_weights_are_served_unquantized(
    tmp_path: Path, key: str, own: str, asked: str, format: str
) -> None:
    model = checkpoint(tmp_path / "m", **{key: own})
    with pytest.warns(QlangchainWarning, match=f"no vLLM here .*; llama.cpp serves .* as {format}"):
        assert VLLM(model=str(model), dtype=asked).format == format


QUANTIZED: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}}
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", [VLLM, LLM])
@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_weights_without_an_engine_are_refused_with_what_to_do(
    tmp_path: Path, method: str, kind: Any
) -> None:
    model = checkpoint(tmp_path / "m", quantization_config=QUANTIZED[method])
    with pytest.raises(MissingDependencyError, match=method.upper()) as caught:
        kind(model=str(model))
    for way in ("qlangchain env create vllm", "vllm serve", "endpoint="):
        assert way in caught.value.hint


def test_a_type_of_weights_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="dtype='int3'"):
        VLLM(model="m.gguf", dtype="int3")


def test_behind_an_endpoint_loading_is_the_server_s_business() -> None:
    with pytest.warns(QlangchainWarning, match="have no effect here") as caught:
        llm = VLLM(
            model="org/model-AWQ",
            endpoint="http://127.0.0.1:9",
            trust_remote_code=True,
            dtype="half",
            vllm_kwargs={"quantization": "awq", "max_model_len": 4096},
        )
    assert len(caught) == 1
    for name in ("trust_remote_code", "dtype", "quantization", "max_model_len"):
        assert name in str(caught[0].message)
    assert (llm.endpoint, llm.context_length, llm.format) == ("http://127.0.0.1:9", None, None)
    sent = llm._sampling(None, {})
    assert (sent["top_k"], sent["min_p"]) == (None, None)  # the protocol does not know them
    with pytest.raises(UnsupportedRequestError, match="n=2"):
        VLLM(model="m", endpoint="http://127.0.0.1:9", n=2)


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_VLLM_ENDPOINT", "http://127.0.0.1:9")
    assert VLLM(model="m").endpoint == "http://127.0.0.1:9"
    assert VLLM().endpoint == "http://127.0.0.1:9"
    with pytest.warns(QlangchainWarning, match="vLLM does not serve GGUF"):
        assert VLLM(model="m.gguf", endpoint=None).endpoint is None


# Llama's calls


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"suffix": "."}, "suffix"),
        ({"grammar": object()}, "grammar"),
        ({"logit_bias": {1: 2.0}}, "logit_bias"),
        ({"mirostat_mode": 2}, "mirostat_mode"),
        ({"logprobs": 3}, "logprobs"),
    ],
)
def test_calls_refuse_what_would_change_answers(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedRequestError, match=named):
        Llama("m.gguf")("x", **settings)


def test_calls_refuse_what_they_do_not_know() -> None:
    llm = Llama("m.gguf")
    with pytest.raises(InvalidInputError, match=r"Llama\(\) does not take max_token") as caught:
        llm("x", max_token=3)
    assert "max_tokens" in caught.value.hint
    with pytest.raises(InvalidInputError, match="no string"):
        llm([1, 2, 3])
    with pytest.raises(InvalidInputError, match="does not take temperature"):
        Llama("m.gguf", temperature=0)  # there a keyword that nothing reads


def test_defaults_of_a_call_ask_for_nothing() -> None:
    there = {
        "suffix": None, "max_tokens": 16, "temperature": 0.8, "top_p": 0.95, "min_p": 0.05, "typical_p": 1.0,
        "logprobs": None, "echo": False, "stop": [], "frequency_penalty": 0.0, "presence_penalty": 0.0,
        "repeat_penalty": 1.0, "top_k": 40, "stream": False, "seed": None, "tfs_z": 1.0, "mirostat_mode": 0,
        "model": None, "stopping_criteria": None, "logits_processor": None, "grammar": None, "logit_bias": None,
    }  # fmt: skip
    assert Llama._settings("x", tables.CALL, {}, there)["max_tokens"] == 16
    assert {*there, "mirostat_tau", "mirostat_eta"} == set(tables.CALL)
    there = {name: value for name, value in there.items() if name not in ("echo", "suffix", "stopping_criteria")}
    more = {"tools": None, "tool_choice": None, "response_format": None, "top_logprobs": None, "functions": None}
    assert Llama._settings("x", tables.CHAT_CALL, {}, {**there, **more, "function_call": None})


# What the planner does with it


def test_a_context_beyond_the_model_s_is_cut_with_a_notice() -> None:
    with pytest.warns(QlangchainWarning, match="2048 tokens, not 4096"):
        plan = LlamaCpp(model_path="demo", n_ctx=4096, n_gpu_layers=0).plan
    assert plan is not None
    assert (plan.context_length, plan.hardware, plan.gpu_layers) == (2048, Target.CPU, 0)
    assert any("not 4096" in notice for notice in plan.notices)


def test_more_layers_than_none_is_hybrid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_VRAM", "0")
    with pytest.warns(QlangchainWarning, match="runs on the CPU alone"):
        plan = LlamaCpp(model_path="demo", n_gpu_layers=35, format="Q4_0").plan
    assert plan is not None
    assert (plan.hardware, plan.gpu_layers) == (Target.HYBRID, 0)


def test_threads_reach_the_engine_s_options() -> None:
    for model in (
        LlamaCpp(model_path="demo", n_threads=3, n_gpu_layers=0),
        ChatLlamaCpp(model_path="demo", n_threads=3, n_gpu_layers=0),
        LlamaCppEmbeddings(model_path="demo", n_threads=3, n_gpu_layers=0),
    ):
        options = model._channel().options
        assert options is not None
        assert (options.threads, options.gpu_layers) == (3, 0)


GIB = 1 << 30
BOX = Hardware(memory_total=16 * GIB, memory_available=12 * GIB, cores=8, gpus=(Gpu("RTX 4090", 24 * GIB, 22 * GIB),))


CONFIG = {
    "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128_256, "max_position_embeddings": 4096,
}  # fmt: skip


def planned(**wanted: Any) -> Plan:
    model = ModelFacts("m", from_config(CONFIG))
    offers = [Offer(Method.GGUF, "Q4_0", Origin.FOUND, GIB)]
    return make_plan(Requirements(**wanted), BOX, model, offers, EngineFacts("llamacpp", "b1", gpu=True), threads=5)


@pytest.mark.parametrize(
    ("layers", "target", "expected"),
    [(0, Target.CPU, 0), (35, Target.HYBRID, 35), (-1, Target.HYBRID, -1), (None, Target.HYBRID, -1)],
)
def test_the_number_of_layers_decides_where_it_runs(layers: int | None, target: Target, expected: int) -> None:
    plan = planned(gpu_layers=layers)
    assert (plan.hardware, plan.gpu_layers) == (target, expected)


def test_layers_go_to_the_gpu_that_was_asked_for() -> None:
    assert planned(hardware=Target.GPU, gpu_layers=20).gpu_layers == 20
    assert planned(hardware=Target.CPU, gpu_layers=0).gpu_layers == 0


@pytest.mark.parametrize(
    "wanted",
    [
        {"hardware": Target.CPU, "gpu_layers": 35},
        {"hardware": Target.GPU, "gpu_layers": 0},
        {"hardware": Target.HYBRID, "gpu_layers": 0},
        {"gpu_layers": -2},
        {"threads": 0},
        {"threads": 2000},
    ],
)
def test_numbers_that_cannot_be_are_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        planned(**wanted)
    assert caught.value.hint


def test_threads_of_the_call_win_over_the_settings() -> None:
    assert (planned(threads=3).threads, planned().threads) == (3, 5)


def test_a_number_of_layers_that_was_asked_for_is_never_lowered() -> None:
    for layers, lowered in ((None, True), (35, False)):
        steps = ladder(planned(gpu_layers=layers), Requirements(gpu_layers=layers))
        assert any(step.gpu_layers == 0 for step in steps) is lowered


def test_only_compat_cuts_a_context() -> None:
    assert planned(context_length=9000, cap_context=True).context_length == 4096
    with pytest.raises(InvalidInputError, match="9000"):
        planned(context_length=9000)
