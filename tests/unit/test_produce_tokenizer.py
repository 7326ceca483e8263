"""The tokenizer in GGUF: the vocabulary, its marks, and which pre-tokenizers and merges are accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from unit.tiny_model import (
    MARKS,
    QWEN2,
    TOKENIZER,
    VOCAB,
    Make,
    metadata_of,
    template,
)
from unit.tiny_model import make as make  # noqa: PLC0414 - a fixture

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.errors import (
    CorruptFileError,
    QlangchainError,
    UnsupportedModelError,
)
from qlangchain.produce.gguf import produce_gguf
from qlangchain.produce.tokenizer import read_tokenizer, recognise


def test_the_vocabulary(make: Make, tmp_path: Path) -> None:
    metadata = metadata_of(make, tmp_path)
    tokens, types = metadata["tokenizer.ggml.tokens"].read(), metadata["tokenizer.ggml.token_type"].read()
    assert tokens[255:259] == ["ab", *MARKS]
    assert types[254:259] == [1, 1, 3, 3, 4]
    assert tokens[259:] == [f"[PAD{n}]" for n in range(259, VOCAB)]
    assert set(types[259:]) == {5}
    assert metadata["tokenizer.ggml.merges"].read() == ["a b"]
    assert metadata["tokenizer.ggml.eos_token_id"] == 257
    assert metadata["tokenizer.ggml.bos_token_id"] == 257  # none of its own: a token that ends a text
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.chat_template" not in metadata


def test_special_tokens_and_templates(make: Make, tmp_path: Path) -> None:
    source = make(tokenizer=TOKENIZER | {"post_processor": template("<|endoftext|>", "A")})
    (source / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>", "chat_template": "{{ 1 }}"})
    )
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258, 256]}))
    metadata = read_gguf_header(produce_gguf(source, tmp_path / "out.gguf", "F16")).metadata
    assert [metadata.get(f"tokenizer.ggml.{x}_token_id") for x in ("bos", "eos", "padding", "eot", "eom")] == [
        256, 257, 256, 258, None,
    ]  # fmt: skip
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.chat_template"] == "{{ 1 }}"
    (source / "chat_template.jinja").write_text("{{ 2 }}")
    (source / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "bos_token": "<|endoftext|>"}))
    metadata = read_gguf_header(produce_gguf(source, tmp_path / "out.gguf", "F16")).metadata
    assert metadata["tokenizer.chat_template"] == "{{ 2 }}"
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def changed(**parts: Any) -> dict[str, Any]:
    model = TOKENIZER["model"] | parts.pop("model", {})
    return TOKENIZER | parts | {"model": model}


SPLIT = TOKENIZER["pre_tokenizer"]["pretokenizers"][0]


BYTES = TOKENIZER["pre_tokenizer"]["pretokenizers"][1]


@pytest.mark.parametrize(
    ("tokenizer", "error", "words"),
    [
        (changed(model={"type": "Unigram"}), UnsupportedModelError, "'Unigram'"),
        (changed(model={"dropout": 0.1}), UnsupportedModelError, "dropout"),
        (changed(model={"end_of_word_suffix": "</w>"}), UnsupportedModelError, "suffixes"),
        (changed(model={"ignore_merges": True}), UnsupportedModelError, "ignore_merges=True"),
        (changed(pre_tokenizer=None), UnsupportedModelError, "pre-tokenizer is not one"),
        (changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT]}), UnsupportedModelError, "pre-tokenizer"),
        (
            changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT | {"behavior": "Removed"}, BYTES]}),
            UnsupportedModelError, "Removed",
        ),
        (
            changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT | {"invert": True}, BYTES]}),
            UnsupportedModelError, "invert",
        ),
        (changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), UnsupportedModelError, "prefix"),
        (changed(normalizer={"type": "Lowercase"}), UnsupportedModelError, "Lowercase"),
        (changed(post_processor={"type": "BertProcessing"}), UnsupportedModelError, "post-processor"),
        (changed(post_processor=template("<|endoftext|>", "<|im_end|>", "A")), UnsupportedModelError, "post-processor"),
        (changed(post_processor=template("<missing>", "A")), UnsupportedModelError, "post-processor"),
        (changed(model={"merges": ["a"]}), CorruptFileError, "merge 'a'|merge a"),
        (changed(model={"merges": [["a b", "c"]]}), UnsupportedModelError, "blanks"),
        (changed(added_tokens=[{"content": "x"}]), CorruptFileError, "without content or id"),
        (changed(added_tokens=[{"content": "x", "id": 5}]), CorruptFileError, "two tokens at 5"),
        (changed(added_tokens=[{"content": "ab", "id": 299}]), CorruptFileError, "two ids"),
        (changed(added_tokens=[{"content": "x", "id": 300}]), CorruptFileError, "vocab_size 300"),
        (changed(model={"byte_fallback": True}), UnsupportedModelError, "0 of the 256"),
    ],
)  # fmt: skip
def test_tokenizers_that_are_not_guessed(
    make: Make, tokenizer: dict[str, Any], error: type[QlangchainError], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_tokenizer(make(tokenizer=tokenizer), VOCAB)


def test_pretokenizers_are_told_apart() -> None:
    assert recognise(TOKENIZER) == "qwen2"
    assert recognise(changed(normalizer={"type": "NFC"})) == "qwen2"
    llama3 = SPLIT | {"pattern": {"Regex": QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")}}
    pre = {"type": "Sequence", "pretokenizers": [llama3, BYTES]}
    assert recognise(changed(pre_tokenizer=pre, model={"ignore_merges": True})) == "llama-bpe"
    assert recognise(changed(pre_tokenizer=pre)) == "smaug-bpe"
    assert recognise(changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False})) == "gpt-2"


SPM_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def spm(merges: list[str], normalizer: Any = SPM_NORMALIZER, pre: Any = None, **more: Any) -> dict[str, Any]:
    pieces = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), *"abc▁", "ab", "abc", "bc"]
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": merges, **more}
    return {
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
        "normalizer": normalizer,
        "pre_tokenizer": pre,
        "model": model | {"vocab": {piece: number for number, piece in enumerate(pieces)}},
    }


SORTED = ["a b", "b c", "a bc", "ab c"]


def test_merges_become_scores(make: Make, tmp_path: Path) -> None:
    header = read_gguf_header(produce_gguf(make(tokenizer=spm(SORTED)), tmp_path / "out.gguf", "F16"))
    check_servable(header)
    tokens = header.metadata["tokenizer.ggml.tokens"].read()
    scores = dict(zip(tokens, header.metadata["tokenizer.ggml.scores"], strict=True))
    assert scores["ab"] > scores["bc"] > scores["abc"] > scores["a"]
    types = dict(zip(tokens, header.metadata["tokenizer.ggml.token_type"], strict=True))
    assert (types["<unk>"], types["<0x41>"], types["a"], types["[PAD299]"]) == (2, 6, 1, 5)
    assert header.metadata["tokenizer.ggml.model"] == "llama"
    assert header.metadata["tokenizer.ggml.unknown_token_id"] == 0
    assert header.metadata["tokenizer.ggml.add_space_prefix"] is True


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (spm(["a b", "a bc", "b c", "ab c"]), "not sorted"),
        (spm(["a b", "b c", "ab c"]), "does not merge 'a' and 'bc'"),
        (spm([*SORTED, "a c"]), "not sorted by the token that they make"),
        (spm(SORTED, ignore_merges=True), "ignores merges"),
        (spm(SORTED, normalizer=None), "no blank rule"),
        (
            spm(SORTED, None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}),
            "no blank rule",
        ),
    ],
)
def test_vocabularies_that_llama_cpp_would_join_differently(make: Make, tokenizer: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        read_tokenizer(make(tokenizer=tokenizer), VOCAB)


def test_a_vocabulary_without_a_blank_before_the_text(make: Make, tmp_path: Path) -> None:
    for normalizer, pre in (
        (SPM_NORMALIZER["normalizers"][1], None),  # type: ignore[index]
        (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}),
    ):
        source = make(tokenizer=spm(SORTED, normalizer, pre))
        metadata = read_gguf_header(produce_gguf(source, tmp_path / "out.gguf", "F16")).metadata
        assert metadata["tokenizer.ggml.add_space_prefix"] is False


def test_a_padding_name_that_is_taken(make: Make, tmp_path: Path) -> None:
    added = [*TOKENIZER["added_tokens"], {"id": 259, "content": "[PAD260]", "special": False, "lstrip": True}]
    header = read_gguf_header(produce_gguf(make(tokenizer=TOKENIZER | {"added_tokens": added}), tmp_path / "o", "F16"))
    assert header.metadata["tokenizer.ggml.tokens"][259:262] == ["[PAD260]", "[[PAD260]]", "[PAD261]"]
    check_servable(header)
