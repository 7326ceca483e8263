"""Converted models, served by llama.cpp, against transformers on the same token ids.

Random weights, but nothing else is random about them: a wrong permutation, a bias that was left out or a wrong
rotary base moves log p by whole units, where F32 agrees to 1e-4.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from real.models import (
    CHAT,
    HARD_TEXT,
    LLAMA3,
    QWEN2,
    byte_level_tokenizer,
    compare_logprobs,
    engine,
    gemma_tokenizer,
    save_model,
    spm_tokenizer,
)

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.produce import gguf, kquants

pytest.importorskip("torch")
pytest.importorskip("transformers")

DEMO = Path(gguf.__file__).parents[1] / "demo" / "model"
TEXTS = [
    HARD_TEXT,
    CHAT,
    " leading",
    "  two",
    "trailing ",
    "\n",
    "a",
    "1234567890",
    "中文",
    "🙂",
    "<|im_end|>x<tool_call>",
]
QWEN = byte_level_tokenizer(QWEN2)
LLAMA = byte_level_tokenizer(LLAMA3, ignore_merges=True, bos="<|endoftext|>")
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True, "num_hidden_layers": 7}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + n / 50 for n in range(32)],
    "long_factor": [1.0 + n / 4 for n in range(32)],
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}

MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", LLAMA, {}),
    "llama with biases": ("llama", LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "llama, heads of their own size": ("llama", LLAMA, {"head_dim": 32, "num_key_value_heads": 1}),
    "llama, rope of Llama 3": ("llama", LLAMA, {"rope_parameters": LLAMA3_ROPE}),
    "llama, linear rope": (
        "llama", LLAMA, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama, SentencePiece": ("llama", spm_tokenizer(), {"num_key_value_heads": 4}),
    "mistral": ("mistral", LLAMA, {"sliding_window": None, "shard": "1MB"}),
    "qwen2": ("qwen2", QWEN, {}),
    "qwen2, tied": ("qwen2", QWEN, {"tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", QWEN, {"rope_parameters": YARN}),
    "qwen2, yarn with a factor": ("qwen2", QWEN, {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    "qwen3": ("qwen3", QWEN, {"head_dim": 128}),
    "qwen3, bfloat16, sharded": ("qwen3", QWEN, {"head_dim": 128, "dtype": "bfloat16", "shard": "1MB"}),
    "smollm3": ("smollm3", LLAMA, {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "gemma": ("gemma", gemma_tokenizer(), {"head_dim": 64, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", gemma_tokenizer(), {**GEMMA, "sliding_window": 33}),
    "gemma2, tight softcaps": (
        "gemma2", gemma_tokenizer(), {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    "gemma2, windows in other layers": (
        "gemma2", gemma_tokenizer(),
        {**GEMMA, "sliding_window": 33, "layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 5},
    ),
    "gemma3": ("gemma3", gemma_tokenizer(), {**GEMMA, "sliding_window": 33}),
    "gemma3, linear rope": (
        "gemma3", gemma_tokenizer(),
        {**GEMMA, "sliding_window": 33, "final_logit_softcapping": 5.0, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}},
    ),
    "phi3": ("phi3", spm_tokenizer(), {"original_max_position_embeddings": 512}),
    "phi3, byte-level, a part of each head": (
        "phi3", LLAMA, {"original_max_position_embeddings": 512, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}},
    ),
    "phi3, longrope": (
        "phi3", QWEN, {"max_position_embeddings": 2048, "original_max_position_embeddings": 512,
                       "rope_parameters": LONGROPE, "tie_word_embeddings": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_f32_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    kind, tokenizer, changes = MODELS[name]
    model = save_model(tmp_path / "m", kind, tokenizer, **changes)
    path = gguf.produce_gguf(tmp_path / "m", tmp_path / "m.gguf", "F32")
    expected = Tokenizer.from_str(json.dumps(tokenizer))
    gemma = kind.startswith("gemma")
    blank = tokenizer["model"].get("byte_fallback") and not gemma
    with engine(path) as running:
        worst, agree = compare_logprobs(model, running)
        assert agree == 1.0
        # ggml looks GELU up in a table of 16-bit floats, which moves log p by a few hundredths.
        assert worst < (0.1 if gemma else 2e-4)
        for text in TEXTS:
            ids = expected.encode(text, add_special_tokens=False).ids
            assert running.tokenize(text) == ids
            assert running.tokenize(text, add_special=True) == expected.encode(text).ids
            assert running.detokenize(ids) == (" " if blank else "") + text


# The largest difference in log p over the 200 likeliest tokens; bfloat16 weights, llama.cpp's own arithmetic.
LIMITS = {"F32": 2e-4, "F16": 0.03, "BF16": 0.2, "Q8_0": 0.8, "Q5_1": 4.0, "Q5_0": 4.0, "Q4_1": 6.0, "Q4_0": 6.0}


@pytest.mark.parametrize("format", LIMITS)
def test_every_plain_format_is_served(format: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m", "llama", QWEN, dtype="bfloat16")
    path = gguf.produce_gguf(tmp_path / "m", tmp_path / "m.gguf", format)
    with engine(path) as running:
        worst, _ = compare_logprobs(model, running)
    assert worst < LIMITS[format]


def fuzz() -> list[str]:
    """Texts of letters, digits, blanks, marks and scripts in any order."""
    generator = random.Random(1)
    alphabet = [*"abcXYZ'sStT019 \n\r\t.,!?#_-/()[]{}<>|=+*&^%$@~`\"", *"中文日ひカ한éñüßДжПриλαا٣½²③ⅣΩ・。，！",
                "\u3000", "\u00a0", "\u200d", "\u0301", "🙂", "👩"]  # fmt: skip
    return [HARD_TEXT, *("".join(generator.choices(alphabet, k=generator.randint(1, 40))) for _ in range(300))]


PRETOKENIZERS = json.loads((Path(gguf.__file__).parent / "pretokenizers.json").read_text("utf-8"))["pretokenizers"]


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_every_pretokenizer_cuts_as_tokenizers_does(name: str, tmp_path: Path) -> None:
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    entry, texts = PRETOKENIZERS[name], fuzz()
    if "differs" in entry:
        texts = ["".join(character for character in text if character.isascii()) for text in texts]
    steps = [
        pre_tokenizers.Split(Regex(step["split"]), behavior="isolated")
        if "split" in step
        else pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step["bytes"] == "gpt-2 words")
        for step in entry["steps"]
    ]
    tokenizer = byte_level_tokenizer(
        size=5000, corpus=texts, pre_tokenizer=pre_tokenizers.Sequence(steps), ignore_merges=entry["ignore_merges"]
    )
    save_model(tmp_path / "m", "llama", tokenizer, num_hidden_layers=1, hidden_size=64, intermediate_size=64)
    path = gguf.produce_gguf(tmp_path / "m", tmp_path / "m.gguf", "F16")
    assert read_gguf_header(path).metadata["tokenizer.ggml.pre"] == name
    expected = Tokenizer.from_str(json.dumps(tokenizer))
    with engine(path) as running:
        for text in texts:
            assert running.tokenize(text) == expected.encode(text, add_special_tokens=False).ids, repr(text)


def test_the_demo_model(tmp_path: Path) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    with engine(gguf.produce_gguf(DEMO, tmp_path / "demo.gguf", "F32")) as running:
        worst, agree = compare_logprobs(model, running)
        assert agree == 1.0
        assert worst < 2e-4
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert running.tokenize(text) == ids
            assert running.detokenize(ids) == text
        messages = [{"role": "user", "content": "What is GGUF?"}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert running.post("/apply-template", {"messages": messages})["prompt"] == prompt


@pytest.mark.skipif(not kquants.available(), reason="needs llama-cpp-python or llama-quantize")
@pytest.mark.parametrize("format", kquants.FORMATS)
def test_k_quants(format: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m", "llama", QWEN, dtype="bfloat16")
    path = gguf.produce_gguf(tmp_path / "m", tmp_path / "m.gguf", format)
    header = read_gguf_header(path)
    check_servable(header)
    assert header.metadata["general.file_type"] == gguf.K_FILE_TYPES[format]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m", "m.gguf"]
    with engine(path) as running:
        worst, _ = compare_logprobs(model, running)
    assert worst < (1.5 if format == "Q6_K" else 12.0)
