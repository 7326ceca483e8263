"""The tokenizer of a model, from tokenizer.json to GGUF's `tokenizer.*` metadata.

llama.cpp has its own tokenizers and picks one by two words, `tokenizer.ggml.model` and `tokenizer.ggml.pre`.
A wrong word loads without complaint and cuts text differently, so both are told from the exact structure of
tokenizer.json, never from the model's name. What llama.cpp's tokenizers cannot follow is refused.

Two things it does not do, in every GGUF: Unicode normalization (NFC, which the Qwen tokenizers ask for), and
the blanks that a token with `lstrip` or `rstrip` swallows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from qlangchain.errors import CorruptFileError, UnsupportedModelError
from qlangchain.produce import gguf_file as kv
from qlangchain.produce.checkpoint import read_json
from qlangchain.produce.spm_vocab import BYTE, UNKNOWN, SpmVocab, read_spm

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
MAX_TEMPLATE = 1 << 20

# Texts that llama.cpp itself takes for an end of generation (llama-vocab.cpp), so they need no key.
_KNOWN_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>",
}  # fmt: skip
_NO_GUESS = "qlangchain does not guess tokenizers: look for a ready-made GGUF of this model."


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The finished metadata, the vocabulary's size, and what the user should know."""

    metadata: Mapping[str, bytes]
    size: int
    notices: tuple[str, ...]


def read_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """Read the tokenizer of the model in `directory`, filled up with unused tokens to `vocab_size`.

    Raises `UnsupportedModelError` for a tokenizer that llama.cpp cannot follow, `CorruptFileError` for one
    that contradicts itself or the model, `ModelNotFoundError` where there is no tokenizer.json.
    """
    if not (directory / "tokenizer.json").is_file() and (directory / "tokenizer.model").is_file():
        raise UnsupportedModelError(
            f"{directory} has a tokenizer.model and no tokenizer.json.",
            hint="AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers makes one.",
        )
    data = read_json(directory / "tokenizer.json")
    config = read_json(path) if (path := directory / "tokenizer_config.json").is_file() else {}
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedModelError(f"The tokenizer is of the type {kind!r}; only BPE is known.", hint=_NO_GUESS)
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnsupportedModelError("The tokenizer uses BPE dropout, prefixes or suffixes.", hint=_NO_GUESS)
    added = _added_tokens(data)
    merges = _merges(model)
    tokens, types = _vocabulary(model["vocab"], added, vocab_size)
    notices = _notices(added)
    if model.get("byte_fallback"):
        spm = read_spm(data, merges, model["vocab"].keys() - added.keys(), added)
        metadata = _spm_metadata(tokens, types, spm, model)
    else:
        pre = recognise(data)
        if differs := _pretokenizers()[pre].get("differs"):
            notices.append(f"llama.cpp's pre-tokenizer {pre} cuts some words differently: {differs}.")
        metadata = {
            "tokenizer.ggml.model": kv.string("gpt2"),
            "tokenizer.ggml.pre": kv.string(pre),
            "tokenizer.ggml.tokens": kv.strings(tokens),
            "tokenizer.ggml.token_type": kv.int32s(types),
            "tokenizer.ggml.merges": kv.strings([f"{left} {right}" for left, right in merges]),
        }
    ids = {token: number for number, token in enumerate(tokens)}
    metadata |= _special_tokens(directory, data, config, ids)
    metadata |= _chat_templates(directory, config)
    return Tokenizer(metadata, len(tokens), tuple(notices))


def recognise(data: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json.

    The structure must be one of `pretokenizers.json` to the letter; raises `UnsupportedModelError` otherwise.
    """
    steps = _steps(data.get("pre_tokenizer"))
    normalizer = data.get("normalizer")
    ignore_merges = bool(data["model"].get("ignore_merges", False))
    for name, known in _pretokenizers().items():
        if known["steps"] == steps and known["ignore_merges"] == ignore_merges:
            if normalizer not in (None, {"type": "NFC"}):
                raise UnsupportedModelError(
                    f"The tokenizer is {name} with the normalizer {json.dumps(normalizer)[:120]}.", hint=_NO_GUESS
                )
            return name
    raise UnsupportedModelError(
        f"The pre-tokenizer is not one that llama.cpp is known to follow "
        f"(ignore_merges={ignore_merges}): {json.dumps(steps, ensure_ascii=False)[:600]}",
        hint=f"Known: {', '.join(_pretokenizers())}. {_NO_GUESS}",
    )


def _steps(pre: Any) -> list[Any]:
    """A pre-tokenizer as a flat list of steps, in the words of `pretokenizers.json`."""
    if not isinstance(pre, dict):
        return []
    match pre:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return [step for part in parts for step in _steps(part)]
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} if not pre.get("invert"):
            return [{"split": regex}]
        case {"type": "Digits", "individual_digits": True}:
            return [{"split": "\\p{N}"}]
        case {"type": "ByteLevel"} if not pre.get("add_prefix_space", True):
            return [{"bytes": "gpt-2 words" if pre.get("use_regex", True) else "as they are"}]
    return [pre]


@cache
def _pretokenizers() -> dict[str, Any]:
    text = files("qlangchain.produce").joinpath("pretokenizers.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)["pretokenizers"]
    return table


def _added_tokens(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    added = {}
    for token in _list(data, "added_tokens"):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or type(token.get("id")) is not int:
            raise CorruptFileError(
                "tokenizer.json has an added token without content or id.", hint="Download it again."
            )
        added[token["content"]] = token
    return added


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key) or []
    if not isinstance(value, list):
        raise CorruptFileError(f"tokenizer.json has {key} that are not a list.", hint="Download it again.")
    return value


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges in order. Older files write "a b", newer ones ["a", "b"]."""
    merges = []
    for merge in _list(model, "merges"):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
            raise CorruptFileError(f"tokenizer.json has the merge {str(merge)[:60]!r}.", hint="Download it again.")
        if " " in parts[0] or " " in parts[1]:  # GGUF joins the two by a blank
            raise UnsupportedModelError("The tokenizer merges pieces that contain blanks.", hint=_NO_GUESS)
        merges.append((parts[0], parts[1]))
    return merges


def _vocabulary(
    vocab: Mapping[str, Any], added: Mapping[str, dict[str, Any]], size: int
) -> tuple[list[str], list[int]]:
    """All token texts and types by id. llama.cpp ends the process where a text occurs twice."""
    by_id: dict[int, str] = {}
    for token, number in [*vocab.items(), *((token, entry["id"]) for token, entry in added.items())]:
        if type(number) is not int or not 0 <= number < size:
            raise CorruptFileError(
                f"The tokenizer has the token {token[:40]!r} at {number}; config.json says vocab_size {size}.",
                hint="tokenizer.json and config.json belong to different models; download both again.",
            )
        if by_id.setdefault(number, token) != token:
            raise CorruptFileError(
                f"The tokenizer has two tokens at {number}: {by_id[number][:40]!r} and {token[:40]!r}.",
                hint="Download tokenizer.json again.",
            )
    if len(by_id) != len(set(by_id.values())):
        raise CorruptFileError("The tokenizer lists a token under two ids.", hint="Download tokenizer.json again.")
    tokens, types, taken = [], [], set(by_id.values())
    for number in range(size):
        token = by_id.get(number, f"[PAD{number}]")
        if number not in by_id:
            while token in taken:
                token = f"[{token}]"
            types.append(UNUSED)
        elif token in added:
            special = added[token].get("special") or _looks_special(token)
            types.append(CONTROL if special else USER_DEFINED)
        else:
            types.append(NORMAL)
        tokens.append(token)
    return tokens, types


def _looks_special(token: str) -> bool:
    """Added tokens that are marks although not marked as special; the rule of llama.cpp's converter."""
    ends = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        token.startswith(first) and token.endswith(last) for first, last in ends
    )


def _spm_metadata(tokens: list[str], types: list[int], spm: SpmVocab, model: Mapping[str, Any]) -> dict[str, bytes]:
    unknown = model.get("unk_token")
    for number, token in enumerate(tokens):
        if types[number] == USER_DEFINED and not _looks_special(token):
            tokens[number] = token.replace("▁", " ")  # they are cut out of the text before its blanks are replaced
        if token == unknown:
            types[number] = UNKNOWN
        elif token in spm.bytes:
            types[number] = BYTE
    lowest = -float(len(tokens) + 1)
    return {
        "tokenizer.ggml.model": kv.string("llama"),
        "tokenizer.ggml.pre": kv.string("default"),
        "tokenizer.ggml.tokens": kv.strings(tokens),
        "tokenizer.ggml.scores": kv.float32s([spm.scores.get(token, lowest) for token in tokens]),
        "tokenizer.ggml.token_type": kv.int32s(types),
        "tokenizer.ggml.add_space_prefix": kv.boolean(spm.space_prefix),
        **({"tokenizer.ggml.unknown_token_id": kv.uint32(tokens.index(unknown))} if unknown in tokens else {}),
    }


def _special_tokens(
    directory: Path, data: Mapping[str, Any], config: Mapping[str, Any], ids: Mapping[str, int]
) -> dict[str, bytes]:
    """Begin, end and padding, and whether the first two are added to a text."""
    sources = [
        read_json(path) for name in ("generation_config.json", "config.json") if (path := directory / name).is_file()
    ]

    def find(kind: str) -> list[int]:
        """Ids of a kind, the tokenizer's own first; the configs may list several."""
        entry = config.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        found = [ids[text]] if isinstance(text, str) and text in ids else []
        for source in sources:
            value = source.get(f"{kind}_token_id")
            found += [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]
        return [one for one in dict.fromkeys(found) if 0 <= one < len(ids)]

    first, last = _template(data.get("post_processor"), ids)
    begin, end, pad = find("bos"), find("eos"), find("pad")
    add_bos, add_eos = first is not None, last is not None
    if "add_bos_token" in config or "add_eos_token" in config:  # transformers lets either replace the template
        add_bos = config.get("add_bos_token") is True and bool(begin)
        add_eos = config.get("add_eos_token") is True and bool(end)
    else:
        begin = [first, *begin] if first is not None else begin
        end = [last, *end] if last is not None else end
    # Without a key llama.cpp takes token 11 for either, whatever that is.
    end = end or pad
    begin = begin or pad or end
    texts = list(ids)
    others = [one for one in end[1:] if one != end[0] and texts[one] not in _KNOWN_ENDS]
    metadata = {
        "tokenizer.ggml.add_bos_token": kv.boolean(add_bos),
        "tokenizer.ggml.add_eos_token": kv.boolean(add_eos),
    }
    for key, found in (("bos", begin), ("eos", end), ("padding", pad), ("eot", others), ("eom", others[1:])):
        if found:
            metadata[f"tokenizer.ggml.{key}_token_id"] = kv.uint32(found[0])
    return metadata


def _template(post: Any, ids: Mapping[str, int]) -> tuple[int | None, int | None]:
    """The ids that the post-processor puts before and after a text."""
    match post:
        case None | {"type": "ByteLevel"}:
            return None, None
        case {"type": "Sequence", "processors": list(parts)}:
            pairs = [_template(part, ids) for part in parts]
            firsts = [first for first, _ in pairs if first is not None]
            lasts = [last for _, last in pairs if last is not None]
            if len(firsts) <= 1 and len(lasts) <= 1:
                return next(iter(firsts), None), next(iter(lasts), None)
        case {"type": "TemplateProcessing", "single": list(single)}:
            special = [_template_piece(piece, ids) for piece in single]
            at = special.index(-1) if -1 in special else -1
            if at in (0, 1) and len(special) - at in (1, 2) and None not in special and special.count(-1) == 1:
                return (special[0] if at else None), (special[-1] if len(special) - at == 2 else None)
    raise UnsupportedModelError(
        f"The tokenizer's post-processor cannot be expressed in GGUF: {json.dumps(post)[:200]}", hint=_NO_GUESS
    )


def _template_piece(piece: Any, ids: Mapping[str, int]) -> int | None:
    """The id of a special token, -1 for the text itself, None for what is neither."""
    match piece:
        case {"SpecialToken": {"id": str(name)}}:
            return ids.get(name)
        case {"Sequence": {"id": "A"}}:
            return -1
    return None


def _chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The chat template: chat_template.jinja first, as transformers does, then tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > MAX_TEMPLATE:
            raise CorruptFileError(f"{path} is larger than {MAX_TEMPLATE:,} bytes.", hint="It is no chat template.")
        try:
            return {"tokenizer.chat_template": kv.string(path.read_text("utf-8"))}
        except UnicodeDecodeError:
            raise CorruptFileError(f"{path} is not UTF-8.", hint="Download it again.") from None
    template = config.get("chat_template")
    named: dict[str, Any] = {"default": template} if isinstance(template, str) else {}
    if isinstance(template, list):
        named = {str(one.get("name")): one.get("template") for one in template if isinstance(one, dict)}
    return {
        "tokenizer.chat_template" + ("" if name == "default" else f".{name}"): kv.string(text)
        for name, text in named.items()
        if isinstance(text, str) and name.isidentifier()
    }


def _notices(added: Mapping[str, dict[str, Any]]) -> list[str]:
    greedy = [token for token, entry in added.items() if any(entry.get(k) for k in ("lstrip", "rstrip", "single_word"))]
    if not greedy:
        return []
    return [f"llama.cpp keeps the blanks around {', '.join(greedy[:3])} that transformers drops."]
