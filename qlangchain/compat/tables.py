"""Every argument of the replaced classes, and what becomes of it here.

The names are those of langchain-community 0.4.2 (LlamaCpp, ChatLlamaCpp, LlamaCppEmbeddings, VLLM), of
llama-cpp-python 0.3.36 (Llama and its calls; model_kwargs holds the same) and of vLLM 0.32's `LLM` (vllm_kwargs
holds the same) and `SamplingParams`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from qlangchain.compat.arguments import Argument, Table, kept, no_effect, refused, spread, table, translated
from qlangchain.errors import UnsupportedRequestError

_RANDOM_SEED: Final = 0xFFFFFFFF  # llama.cpp's word for "a new one each time", beside every negative number
_POOLING: Final = {-1: None, 1: "mean", 2: "cls", 3: "last"}  # llama.h: enum llama_pooling_type

_ADAPTER: Final = "the engine is started without adapters"
_GRAMMAR: Final = "a GBNF grammar is not handed on to the engine"
_SCHEMA: Final = "Use ChatLlamaCpp(...).with_structured_output(schema), which the engine's grammar enforces."
_TEMPLATE: Final = "the chat template in the model's file is used"
_PLACING: Final = "the engine places tensors and computes as it does by itself"
_FIXED: Final = "the engine reads this from the model's file"
_SAMPLER: Final = "it is not handed on to the engine"
SERVE: Final = (
    "Run `qlangchain env create vllm` (without a GPU: `vllm-cpu`); or start `vllm serve MODEL` elsewhere and "
    "pass endpoint='http://host:8000'; or pass the model's full-precision weights or a GGUF file of it."
)


def _at_most(limit: int, name: str, value: Any) -> dict[str, Any]:
    """Our None for a number up to `limit`, which is the other library's "no limit" or "choose yourself"."""
    return {name: None if isinstance(value, int) and value <= limit else value}


def _seed(value: Any) -> dict[str, Any]:
    return {"seed": None if isinstance(value, int) and (value < 0 or value == _RANDOM_SEED) else value}


def _top_k(value: Any) -> dict[str, Any]:
    return {"top_k": 0 if isinstance(value, int) and value < 0 else value}


def _gpu_layers(value: Any) -> dict[str, Any]:
    return {"gpu_layers": -1 if isinstance(value, int) and value < 0 else value}


def _logprobs(value: Any) -> dict[str, Any]:
    if value is None or isinstance(value, bool):
        return {"logprobs": value}
    return {"logprobs": True, "top_logprobs": value} if value else {"logprobs": None}


def _pooling(value: Any) -> dict[str, Any]:
    if value is None or isinstance(value, str):
        return {"pooling": value}
    if value not in _POOLING:
        raise UnsupportedRequestError(
            f"pooling_type={value!r} gives no single vector per text.",
            hint="Pass 1 (mean), 2 (cls), 3 (last), or -1 for the model's own.",
        )
    return {"pooling": _POOLING[value]}


# What llama_cpp.Llama takes, which langchain-community's fields and model_kwargs end in.
_LOADING: Final[list[Argument]] = [
    translated("model_path", "`model`, so it may also be a directory, or 'demo'", lambda v: {"model": v}),
    translated(
        "n_ctx",
        "`context_length`; 0 or left out is the model's own, at most 8192 (there 512); more than the model was "
        "made for is cut to that, with a notice",
        lambda v: _at_most(0, "context_length", v),
    ),
    translated("n_threads", "`threads`", lambda v: _at_most(0, "threads", v)),
    *no_effect(
        "n_threads_batch", note="prompts are computed with as many threads as answers, n_threads", same_as="n_threads"
    ),
    translated(
        "n_gpu_layers",
        "`gpu_layers`; 0 is `hardware='cpu'`, any other number `'hybrid'`; left out, the planner decides (there 0)",
        _gpu_layers,
    ),
    translated("seed", "a negative number is a new seed for each call", _seed),
    *no_effect("n_batch", "n_ubatch", note="the engine fills its batches from all running requests"),
    *no_effect("n_parts", note="nothing reads it any more", neutral=(None, -1)),
    *no_effect("f16_kv", note="the KV cache is f16; llama-cpp-python ignores it as well", neutral=(None, True)),
    *no_effect("use_mmap", note="the engine maps the file", neutral=(None, True)),
    *no_effect("use_mlock", note="the engine does not lock memory", neutral=(None, False)),
    *no_effect("logits_all", note="log-probabilities need no such preparation", neutral=(None, False)),
    *no_effect("verbose", note="the engine's log is kept for its errors and not printed", neutral=(None, False)),
    *refused(
        "vocab_only", note="a vocabulary alone does not generate", neutral=(None, False), hint="Load the whole model."
    ),
    *refused("lora_path", "lora_base", note=_ADAPTER, hint="Merge the adapter into the model."),
    *refused("lora_scale", note=_ADAPTER, neutral=(None, 1.0), hint="Merge the adapter into the model."),
    *refused("client", note="the engine is a process of its own", hint="Pass model_path= instead."),
    *refused(
        "rope_freq_base",
        note="the model's own base is used (langchain-community put its default of 10000 over it)",
        neutral=(None, 0, 0.0, 10000, 10000.0),
    ),
    *refused("rope_freq_scale", note=_FIXED, neutral=(None, 0, 0.0, 1, 1.0)),
    *refused("rope_scaling_type", "attention_type", note=_FIXED, neutral=(None, -1)),
    *refused("yarn_ext_factor", note=_FIXED, neutral=(None, -1, -1.0)),
    *refused("yarn_attn_factor", "yarn_beta_slow", note=_FIXED, neutral=(None, 1, 1.0)),
    *refused("yarn_beta_fast", note=_FIXED, neutral=(None, 32, 32.0)),
    *refused("yarn_orig_ctx", note=_FIXED, neutral=(None, 0)),
    *refused("kv_overrides", note=_FIXED, hint="Write them into the file (gguf-set-metadata)."),
    *refused("last_n_tokens_size", note="repeat_penalty looks back over 64 tokens", neutral=(None, 64)),
    *refused("type_k", "type_v", note="the KV cache is f16", neutral=(None, 1)),
    *refused("chat_format", note=_TEMPLATE, hint="Use a GGUF file that holds the right template."),
    *refused("chat_handler", note=_TEMPLATE, hint="This is for text; images need another engine."),
    *no_effect("spm_infill", note="nothing is filled in between", neutral=(None, False)),
    *refused("draft_model", "tokenizer", note="a Python object cannot reach the engine, a process of its own"),
    *no_effect("flash_attn", "swa_full", "numa", "no_perf", note=_PLACING, neutral=(None, False)),
    *no_effect("offload_kqv", "op_offload", note=_PLACING, neutral=(None, True)),
    *no_effect("main_gpu", "split_mode", "tensor_split", note=_PLACING),
    translated("pooling_type", "`pooling`; 1 is mean, 2 cls, 3 last, -1 the model's own", _pooling),
    *no_effect("embedding", note="text and embeddings come from engines of their own", neutral=(None, True, False)),
]
_OF_EMBEDDINGS: Final = ("pooling_type", "embedding")
_OF_LOADING: Final = (  # what langchain-community's embeddings hand on of it
    *("model_path", "n_ctx", "n_threads", "n_threads_batch", "n_gpu_layers", "n_batch", "n_parts", "use_mlock"),
    *("logits_all", "verbose", "vocab_only", "client", "pooling_type"),
)

# What a text is generated with.
_SAMPLING: Final[list[Argument]] = [
    *kept("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    translated("top_k", "a negative number is 0, all tokens", _top_k),
    *kept("stop", note="a call's own stop replaces it (there an error)"),
    translated(
        "max_tokens",
        "0 or less is as many as the context has room for",
        lambda v: _at_most(0, "max_tokens", v),
    ),
    *refused("suffix", note="nothing is appended to an answer", neutral=(None, ""), hint="Append it yourself."),
    *refused("echo", note="the answer holds the answer alone", neutral=(None, False), hint="Prepend the prompt."),
    *refused("grammar", "grammar_path", note=_GRAMMAR, hint=_SCHEMA),
    *refused("logit_bias", "stopping_criteria", "logits_processor", note=_SAMPLER),
    *refused("typical_p", "tfs_z", note=_SAMPLER, neutral=(None, 1, 1.0)),
    *refused("mirostat_mode", note=_SAMPLER, neutral=(None, 0)),
    *no_effect("mirostat_tau", "mirostat_eta", note="mirostat is off"),
]
_NO_LOGPROBS: Final = refused(
    "logprobs", note="text models give no log-probabilities", hint="Use ChatLlamaCpp(logprobs=...)."
)
_STREAMING: Final = kept("streaming", note="on unless it is switched off, as there: callbacks hear each token")
_MODEL_KWARGS: Final = [spread("model_kwargs")]


def _without(arguments: list[Argument], *names: str) -> list[Argument]:
    return [argument for argument in arguments if argument.name not in names]


LLAMA: Final[Table] = table(_LOADING)
LLAMA_CPP: Final[Table] = table(_without(_LOADING, *_OF_EMBEDDINGS), _SAMPLING, _NO_LOGPROBS, _STREAMING, _MODEL_KWARGS)
CHAT_LLAMA_CPP: Final[Table] = table(
    _without(_LOADING, *_OF_EMBEDDINGS),
    _SAMPLING,
    [translated("logprobs", "`logprobs=True, top_logprobs=` this number", _logprobs)],
    _STREAMING,
    _MODEL_KWARGS,
)
EMBEDDINGS: Final[Table] = table(
    [argument for argument in _LOADING if argument.name in _OF_LOADING],
    # The archived class itself said False.
    no_effect("f16_kv", note="the KV cache is f16; llama-cpp-python ignores it as well", neutral=(None, True, False)),
    no_effect("seed", note="vectors do not depend on chance", neutral=(None, -1)),
    no_effect("device", note="n_gpu_layers says where the model runs; llama-cpp-python ignores it as well"),
)
# What a call of Llama takes.
CALL: Final[Table] = table(
    _without(_SAMPLING, "echo", "grammar_path"),
    [translated("seed", "a negative number is a new seed for each call", _seed)],
    _NO_LOGPROBS,
    kept("echo", "stream"),
    no_effect("model", note="the model is the one that was loaded"),
)
CHAT_CALL: Final[Table] = table(
    _without(_SAMPLING, "echo", "grammar_path", "suffix", "stopping_criteria"),
    [translated("seed", "a negative number is a new seed for each call", _seed)],
    kept("stream", "tools", "tool_choice", "response_format", "logprobs", "top_logprobs"),
    refused("functions", "function_call", note="they are the protocol's earlier form of tools", hint="Pass tools=."),
    no_effect("model", note="the model is the one that was loaded"),
)

_DTYPE: Final = (
    "the type that vLLM computes in; where llama.cpp serves, `format`: half is F16, bfloat16 BF16, float32 F32, auto "
    "the checkpoint's own, and nothing is quantized"
)
_WEIGHTS: Final = (
    "what the weights must be; the format itself is read from the model's config.json and never forced (awq, gptq, "
    "compressed-tensors, fp8; their _marlin forms mean the same)"
)
_OWN: Final = "a setting of vLLM's own; no effect, which is said, where llama.cpp serves"
# Settings of vLLM that change nothing where they have these values.
_SETTINGS: Final[dict[str, tuple[Any, ...]]] = {
    "tensor_parallel_size": (None, 1),
    "pipeline_parallel_size": (None, 1),
    "gpu_memory_utilization": (None,),
    "kv_cache_memory_bytes": (None,),
    "cpu_offload_gb": (None, 0, 0.0),
    "enforce_eager": (None, False),
    "enable_prefix_caching": (None,),
    "enable_chunked_prefill": (None,),
    "max_num_batched_tokens": (None,),
    "distributed_executor_backend": (None,),
    "disable_custom_all_reduce": (None, False),
}
SETTINGS: Final = (*_SETTINGS, "kv_cache_dtype")


def _itself(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: value}


_OF_VLLM: Final[list[Argument]] = [  # what VLLM's vllm_kwargs and LLM have in common
    *kept(
        "model",
        note="a directory of safetensors (AWQ, GPTQ, compressed-tensors, FP8, full precision), a GGUF file, or a name "
        "that endpoint= serves",
    ),
    translated("dtype", _DTYPE, lambda v: {"dtype": v}, loading=True, neutral=("auto",)),
    translated("quantization", _WEIGHTS, lambda v: {"quantization": v}, loading=True),
    translated("max_model_len", "`context_length`", lambda v: {"context_length": v}, loading=True),
    translated("max_num_seqs", "`concurrency`", lambda v: {"concurrency": v}, loading=True),
    *(translated(name, _OWN, _itself(name), neutral=none, loading=True) for name, none in _SETTINGS.items()),
    translated(
        "kv_cache_dtype",
        "a setting of vLLM's own; refused where llama.cpp serves, whose KV cache is f16",
        _itself("kv_cache_dtype"),
        neutral=(None, "auto"),
        loading=True,
    ),
    *refused(
        "trust_remote_code",
        note="nothing runs code that came with a model",
        neutral=(None, False),
        hint="Use a model that needs no code of its own.",
        loading=True,
    ),
    *refused("tokenizer", "revision", "tokenizer_revision", note="the model is read as it lies there", loading=True),
    *refused("enable_lora", note=_ADAPTER, neutral=(None, False), hint="Merge the adapter.", loading=True),
    *refused(
        "load_format", note="safetensors are read, never pickles", neutral=(None, "auto", "safetensors"), loading=True
    ),
    *no_effect("download_dir", note="models are read from where they lie", loading=True),
    *no_effect("swap_space", note="vLLM has no swap space any more", loading=True),
    *no_effect("disable_log_stats", note="the engine's log is kept for its errors", loading=True),
]

VLLM: Final[Table] = table(
    _OF_VLLM,
    kept("temperature", "top_p", "presence_penalty", "frequency_penalty"),
    kept("stop", note="a call's own stop replaces it (there the constructor's was lost)"),
    [
        translated("max_new_tokens", "`max_tokens`", lambda v: {"max_tokens": v}),
        translated("top_k", "a negative number is 0, all tokens", _top_k),
        translated("seed", "the seed of each call", _seed),
    ],
    [spread("vllm_kwargs")],
    refused("n", "best_of", note="one answer is given for each prompt", neutral=(None, 1), hint="Call it n times."),
    refused("use_beam_search", "ignore_eos", note=_SAMPLER, neutral=(None, False)),
    refused("logprobs", note="text models give no log-probabilities", hint="Use get_chat_model(logprobs=True)."),
    refused("client", note="the engine is a process of its own", hint="Pass model= or endpoint=."),
)

_PROCESS: Final = "the engine is a process of its own, which no Python object reaches"
LLM: Final[Table] = table(
    _OF_VLLM,
    [translated("seed", _OWN, _itself("engine_seed"), neutral=(None, 0), loading=True)],
    [translated("tokenizer_mode", _OWN, _itself("tokenizer_mode"), neutral=(None, "auto"), loading=True)],
    refused("chat_template", note=_TEMPLATE, hint="Write it into the model's tokenizer_config.json.", loading=True),
    refused("skip_tokenizer_init", note="prompts are text", neutral=(None, False), loading=True),
    refused("runner", note="it generates", neutral=(None, "auto", "generate"), hint="Use get_embeddings(model)."),
    refused("convert", note="it generates", neutral=(None, "auto", "none"), hint="Use get_embeddings(model)."),
    refused("logits_processors", note=_PROCESS, neutral=(None, []), loading=True),
    refused("hf_overrides", "quantization_config", note="the model's own config.json holds", loading=True),
    refused("pooler_config", "mm_processor_kwargs", "speculative_config", note="it is not handed on", loading=True),
    refused("compilation_config", "structured_outputs_config", note="it is not handed on", loading=True),
    no_effect("hf_token", note="nothing is fetched by the engine", loading=True),
    no_effect("allowed_local_media_path", note="prompts are text", neutral=(None, ""), loading=True),
)

_TEXT_ONLY: Final = "answers are text as the engine writes it"
_TOKENS: Final = "single tokens are not handed on"
SAMPLING_PARAMS: Final[Table] = table(
    kept("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "stop"),
    kept("n", note="each answer is a request of its own; with a seed, the i-th has seed + i, as in vLLM"),
    [
        translated("top_k", "-1 is 0, all tokens", _top_k),
        translated("repetition_penalty", "`repeat_penalty`", lambda v: {"repeat_penalty": v}, neutral=(None, 1.0, 1)),
        translated("max_tokens", "16 unless given, as there; None is as many as fit", lambda v: {"max_tokens": v}),
        translated("seed", "a negative number is a new seed for each call", _seed),
    ],
    refused("best_of", note="vLLM has dropped it", neutral=(None, 1), hint="Pass n= and choose yourself."),
    refused("use_beam_search", note="vLLM has dropped it", neutral=(None, False)),
    refused("ignore_eos", note=_SAMPLER, neutral=(None, False)),
    refused("min_tokens", note=_SAMPLER, neutral=(None, 0)),
    refused("logprobs", "prompt_logprobs", note="they are not handed on", hint="Use get_chat_model(logprobs=True)."),
    refused("stop_token_ids", "allowed_token_ids", "bad_words", "logit_bias", note=_TOKENS, neutral=(None, [], {})),
    refused("logits_processors", note=_PROCESS, neutral=(None, [])),
    refused(
        "structured_outputs",
        "guided_decoding",
        note="it is not handed on",
        hint="Use get_chat_model(...).with_structured_output(schema), which the engine's grammar enforces.",
    ),
    refused("truncate_prompt_tokens", note="nothing is ever cut", hint="Shorten the prompt yourself."),
    refused("skip_special_tokens", "detokenize", note=_TEXT_ONLY, neutral=(None, True)),
    refused("include_stop_str_in_output", note=_TEXT_ONLY, neutral=(None, False)),
    refused("extra_args", note="it is not handed on", neutral=(None, {})),
    no_effect("spaces_between_special_tokens", note="special tokens are not shown", neutral=(None, True)),
    no_effect("output_kind", note="answers are whole"),
)

README: Final = {
    "LlamaCpp": LLAMA_CPP,
    "ChatLlamaCpp": CHAT_LLAMA_CPP,
    "LlamaCppEmbeddings": EMBEDDINGS,
    "Llama": LLAMA,
    "VLLM": VLLM,
    "LLM": LLM,
    "SamplingParams": SAMPLING_PARAMS,
}
