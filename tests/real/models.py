"""Small models made on the spot, and llama.cpp around a GGUF file: the helpers of the tests in this directory."""

from __future__ import annotations

import copy
import json
import os
import random
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# What tokenizers disagree about: contractions, digits, runs of blanks and line ends, scripts, emoji, marks.
HARD_TEXT = (
    "It's 1234567 o'clock, WE'LL see: don't\n\n\n  indent\t\ttabs \r\n trailing   \n"
    "中文字符和标点，测试。日本語テスト 한국어 русский текст ПРИВЕТ ελληνικά naïve café "
    "🙂🚀👩‍👩‍👧 price=$3,141.59 (x_1+y_2)**2 != z; http://a.b/c?d=e&f=1 ½ ² ٣٤ […] ---- #### 'S 'Ll"
    "end   "
)
CHAT = "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n<tool_call>{}</tool_call>"
CORPUS = [
    HARD_TEXT,
    "The quick brown fox jumps over the lazy dog and doesn't stop. " * 3,
    "Quantization stores each weight in fewer bits; a group of weights shares one scale. " * 3,
    "def f(x):\n    return x * 2\n\nfor i in range(10):\n    print(i, f(i))\n",
    "量化把每个权重存成更少的位数，一组权重共用一个比例。今天天气很好，我们去公园散步。" * 2,
    " ".join(str(n * 7919) for n in range(200)),
]


def byte_level_tokenizer(
    split: str | None = QWEN2, *, size: int = 1024, ignore_merges: bool = False, normalizer: Any = None,
    pre_tokenizer: Any = None, bos: str | None = None, corpus: list[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A tokenizer.json trained on `corpus`, with the marks of ChatML; `split` is the regex before the bytes.

    With a `corpus` of its own the merges are learned across the words, so that any difference in where a text
    is split shows in the tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if pre_tokenizer is None:
        pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split or ""), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False) if corpus else pre_tokenizer
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=size - 5, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus or CORPUS, trainer)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    return data


def spm_tokenizer(*, size: int = 900) -> dict[str, Any]:
    """A tokenizer.json like Llama 2's: BPE over whole texts with bytes as the last resort.

    The pieces are learned by BPE; the merges are then all pairs that the vocabulary allows, sorted by the
    piece that they make, as transformers writes them when it converts a SentencePiece model.
    """
    from tokenizers import Tokenizer, models, normalizers, trainers

    prefix = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    teacher = Tokenizer(models.BPE())
    teacher.normalizer = normalizers.Sequence(prefix)  # type: ignore[assignment]
    teacher.train_from_iterator(
        [line for text in CORPUS for line in text.split("。")],
        trainers.BpeTrainer(vocab_size=size - 259, show_progress=False, max_token_length=8),
    )
    learned = json.loads(teacher.to_str())["model"]
    order = ["".join(merge) for merge in learned["merges"]]
    letters = [piece for piece in learned["vocab"] if len(piece) == 1]
    marks = ["<unk>", "<s>", "</s>"]
    pieces = [*marks, *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(order), *letters]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in dict.fromkeys(order)
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    added = [
        {"id": number, "content": mark, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for number, mark in enumerate(marks)
    ]  # fmt: skip
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def gemma_tokenizer(*, size: int = 1400, longest: int = 6) -> dict[str, Any]:
    """A tokenizer.json like Gemma's: no blank before a text, and runs of blanks and of line ends that are tokens.

    As transformers writes it: the pieces that a user defined have the score 0, above all learned ones, so that the
    merges that make runs of blanks come first, those with the longer left part before the others.
    """
    data = spm_tokenizer(size=size)
    model = data["model"]
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    runs = ["▁" * length for length in range(2, longest + 1)]
    ends = ["\n" * length for length in range(1, 4)]
    learned = [piece for piece in model["vocab"] if piece not in ("<unk>", "<s>", "</s>")]
    learned = [piece for piece in learned if "▁▁" not in piece and "\n" not in piece]
    pieces = [*marks, *ends, *runs, "<table>", *learned]
    model["vocab"] = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    splits = [(run[:cut], run[cut:]) for run in runs for cut in range(1, len(run))]
    first = sorted(splits, key=lambda pair: (-len(pair[0]), -len(pair[1])))
    kept = [merge for merge in model["merges"] if {*merge, "".join(merge)} <= model["vocab"].keys()]
    model["merges"] = [*map(list, first), *kept]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data["added_tokens"] = [
        {"id": model["vocab"][token], "content": token, **plain, "special": token in marks}
        for token in [*marks, *ends, *runs, "<table>"]
    ]
    data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    data["pre_tokenizer"] = {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
    }  # fmt: skip
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
    }
    data["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        ],
    }  # fmt: skip
    return data


def save_model(
    directory: Path, kind: str, tokenizer: dict[str, Any], *, dtype: str = "float32", shard: str = "10GB",
    tokenizer_config: dict[str, Any] | None = None, **changes: Any,
) -> Any:  # fmt: skip
    """Make a model of random weights with transformers, save it to `directory` and return it (float32, eval).

    The weights are larger than usual at the start of a training, so that the distributions are not flat.
    """
    import torch
    import transformers

    classes = {
        "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3",
        "gemma": "Gemma", "gemma2": "Gemma2", "gemma3": "Gemma3", "phi3": "Phi3",
    }  # fmt: skip
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    vocab = max(ids) + 1
    values: dict[str, Any] = {
        "vocab_size": vocab + 7,  # rows beyond the tokenizer, as Qwen has them
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.08,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": vocab - 1, "pad_token_id": None,
        **changes,
    }  # fmt: skip
    torch.manual_seed(7)
    name = f"{classes[kind]}TextConfig" if kind == "gemma3" else f"{classes[kind]}Config"
    config = getattr(transformers, name)(**values)
    model = getattr(transformers, f"{classes[kind]}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms that are all one and biases that are all zero would hide a mix-up
                parameter.copy_(torch.rand_like(parameter) + 0.5 if "norm" in name else torch.randn_like(parameter) / 2)
            parameter.copy_(
                parameter.to(getattr(torch, dtype))
            )  # the rounding alone: .to() would hit rope's buffers too
    copy.deepcopy(model).to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=shard)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | (tokenizer_config or {})), "utf-8")
    return model.eval()


class Engine:
    """llama.cpp around one GGUF file, spoken to over its HTTP port with a key."""

    def __init__(self, path: Path, *, context: int = 512) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context
        params.n_parallel = 1
        params.warmup = False
        params.verbosity = -1
        params.cpuparams.n_threads = 1
        # Flash attention adds up in F16 where the keys are F32, which costs 0.01 in log p and hides small errors.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.key = os.urandom(16).hex()
        params.api_keys = [self.key]
        self.server: Any = xllamacpp.Server(params)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST to llama.cpp's own API."""
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The ids of a text, marks included."""
        ids: list[int] = self.post(
            "/tokenize", {"content": text, "add_special": add_special, "parse_special": True}
        )["tokens"]  # fmt: skip
        return ids

    def detokenize(self, ids: list[int]) -> str:
        """The text of some ids."""
        text: str = self.post("/detokenize", {"tokens": ids})["content"]
        return text

    def logprobs(self, ids: list[int], count: int) -> dict[int, float]:
        """log p of the `count` likeliest tokens that may follow `ids`, before any sampling.

        The server leaves them out where it samples half a character or an end, so the sampler is made to
        choose the letter a; the logits that are reported do not know of it.
        """
        answer = self.post(
            "/completion",
            {"prompt": ids, "n_predict": 1, "n_probs": count, "post_sampling_probs": False, "temperature": 0,
             "cache_prompt": False, "logit_bias": [[self.tokenize("a")[-1], 1000.0]]},
        )  # fmt: skip
        return {one["id"]: one["logprob"] for one in answer["completion_probabilities"][0]["top_logprobs"]}


@contextmanager
def engine(path: Path, *, context: int = 512) -> Iterator[Engine]:
    """An `Engine` for the length of a block."""
    running = Engine(path, context=context)
    try:
        yield running
    finally:
        running.server = None


def compare_logprobs(
    model: Any, running: Engine, *, lengths: tuple[int, ...] = (1, 7, 40, 150), count: int = 200
) -> tuple[float, float]:
    """(largest |difference of log p| over the likeliest `count`, share of equal argmax) against transformers."""
    import torch

    generator = random.Random(5)
    vocab = model.config.vocab_size - 8  # save_model adds 7 rows that are no tokens
    worst, agree = 0.0, []
    for length in lengths:
        ids = [generator.randrange(vocab) for _ in range(length)]
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1).numpy()
        found = running.logprobs(ids, count)
        worst = max(worst, *(abs(float(expected[token]) - value) for token, value in found.items()))
        agree.append(max(found, key=lambda token: found[token]) == int(np.argmax(expected)))
    return worst, sum(agree) / len(agree)
