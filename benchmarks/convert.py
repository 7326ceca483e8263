"""Converting a model of 0.5B parameters to GGUF: speed and private memory, beside llama.cpp's script where it is given.

    python benchmarks/convert.py [--script .../convert_hf_to_gguf.py] [--formats BF16,Q8_0] [--repeat 3]

The weights are random and of the shape of Qwen2.5-0.5B. Each conversion runs in a process of its own; its private
memory is watched from outside, pages of mapped files are not counted. llama.cpp's script is no wheel on PyPI: it lies
in the source distribution of llama-cpp-python (vendor/llama.cpp), with the gguf package that belongs to it beside it.
With it (it imports torch, transformers and sentencepiece) the tensors of both files are compared byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
    "hidden_act": "silu", "torch_dtype": "bfloat16", "eos_token_id": 0, "bos_token_id": 0,
}  # fmt: skip
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    """Make the model, convert it, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--formats", default="BF16,F16,Q8_0")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "model"
        size = make(source, asked.layers)
        print(f"{size / 1e6:.0f} MB of bfloat16 weights, {os.cpu_count()} cores; the best of {asked.repeat} runs")
        print("| format | converter | seconds | CPU seconds | MB/s | private memory |\n|---|---|---|---|---|---|")
        for format in asked.formats.split(","):
            ours = Path(directory) / f"ours-{format}.gguf"
            took = best(asked.repeat, ours_command(source, ours, format), {}, ours)
            row(format, "qlangchain", size, took)
            if asked.script:
                theirs = Path(directory) / f"theirs-{format}.gguf"
                command = [sys.executable, "-c", PATCH, str(asked.script), str(source), "--outfile", str(theirs),
                           "--outtype", format.lower()]  # fmt: skip
                path = os.pathsep.join([str(asked.script.parent / "gguf-py"), str(asked.script.parent), *sys.path[1:]])
                other = best(asked.repeat, command, {"PYTHONPATH": path}, theirs)
                row(format, "llama.cpp's script", size, other)
                print(f"\n{format}: {other[0] / took[0]:.2f} times as fast; {compare(ours, theirs)}\n")
                theirs.unlink()
            ours.unlink()


# The script refuses tokenizers whose hash it does not know, which a home-made one always is.
PATCH = """
import runpy, sys
sys.argv = sys.argv[1:]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def ours_command(source: Path, target: Path, format: str) -> list[str]:
    """The command that converts with this package."""
    code = "import sys; from pathlib import Path; from qlangchain.produce.gguf import produce_gguf as p; "
    return [sys.executable, "-c", code + "p(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])", str(source),
            str(target), format]  # fmt: skip


def best(repeat: int, command: list[str], environment: dict[str, str], target: Path) -> tuple[float, float, int]:
    """(seconds, CPU seconds, most private memory in bytes) of the fastest of some runs."""
    runs = []
    for _ in range(repeat):
        target.unlink(missing_ok=True)
        runs.append(watch(command, environment))
    fastest = min(runs)
    return fastest[0], fastest[1], max(private for _, _, private in runs)


def watch(command: list[str], environment: dict[str, str]) -> tuple[float, float, int]:
    """Run a command; (seconds, CPU seconds, most private memory in bytes)."""
    start, private, spent = time.perf_counter(), 0, 0.0
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            memory = seen.memory_info()
            private = max(private, memory.rss - memory.shared)
            times = seen.cpu_times()
            spent = times.user + times.system
        except psutil.Error:
            break
        time.sleep(0.02)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    if process.wait():
        raise SystemExit(f"{command[0]} failed:\n{said[-2000:]}")
    return time.perf_counter() - start, spent, private


def row(format: str, name: str, size: int, took: tuple[float, float, int]) -> None:
    """Print one line of the table."""
    seconds, spent, private = took
    print(f"| {format} | {name} | {seconds:.1f} | {spent:.1f} | {size / seconds / 1e6:.0f} | {private >> 20} MiB |")


def compare(ours: Path, theirs: Path) -> str:
    """Say how many tensors are equal to the byte."""
    from qlangchain.artifacts.headers import read_gguf_header

    found = []
    for path in (ours, theirs):
        content = np.memmap(path, np.uint8, "r")
        found.append(
            {t.name: (t.type, content[t.offset : t.offset + t.nbytes]) for t in read_gguf_header(path).tensors}
        )
    same = [
        name
        for name, (kind, values) in found[0].items()
        if name in found[1] and kind == found[1][name][0] and np.array_equal(values, found[1][name][1])
    ]
    return f"{len(same)} of {len(found[0])} tensors equal to the byte ({len(found[1])} there)"


def make(directory: Path, layers: int) -> int:
    """Write random weights of the shape of `CONFIG`, and a tokenizer; return the size of the weights in bytes."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    directory.mkdir()
    config = CONFIG | {"num_hidden_layers": layers}
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([__doc__ or ""], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    hidden, inner, keys = config["hidden_size"], config["intermediate_size"], 128
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,),
    }  # fmt: skip
    for layer in range(layers):
        block = f"model.layers.{layer}."
        shapes |= {f"{block}{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        for part, rows in (("q", hidden), ("k", keys), ("v", keys)):
            shapes |= {
                f"{block}self_attn.{part}_proj.weight": (rows, hidden),
                f"{block}self_attn.{part}_proj.bias": (rows,),
            }
        shapes |= {
            f"{block}self_attn.o_proj.weight": (hidden, hidden), f"{block}mlp.gate_proj.weight": (inner, hidden),
            f"{block}mlp.up_proj.weight": (inner, hidden), f"{block}mlp.down_proj.weight": (hidden, inner),
        }  # fmt: skip
    entries, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    random = np.random.default_rng(1)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for shape in shapes.values():
            values = random.standard_normal(int(np.prod(shape)), np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    return at


if __name__ == "__main__":
    main()
