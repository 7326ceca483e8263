"""A child process that reads mutated headers within limits: `python header_mutations.py FORMAT COUNT SEED`.

It prints one JSON object: how many were accepted and refused by which class, the slowest in seconds of CPU time, and
the largest resident set in MiB. Anything but success or one of our errors ends it with a traceback; memory beyond
the limit of its address space is such an error, and a reader that never returns is ended by the alarm.
"""

from __future__ import annotations

import collections
import json
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qlangchain.artifacts.headers import GgufArray, check_servable, parse_gguf_header, parse_safetensors_header
from qlangchain.errors import CorruptFileError, UnsupportedModelError
from qlangchain.produce import gguf_file as kv

ADDRESS_SPACE = 600 << 20  # bytes, of which the interpreter and its libraries take about 100 MiB
ALARM = 20  # seconds without a result
EXTREMES = [0, 1, 2, 7, 8, 9, 255, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 32, 1 << 48, 1 << 62, 1 << 63, (1 << 64) - 1]

Read = Callable[[int, int], bytes]


def gguf_seed() -> bytes:
    metadata = {
        "general.architecture": kv.string("llama"),
        "general.name": kv.string("Seed 🙂"),
        "general.alignment": kv.uint32(32),
        "llama.block_count": kv.uint32(2),
        "llama.embedding_length": kv.uint32(64),
        "llama.attention.head_count": kv.int32s([4, 4]),
        "llama.rope.freq_base": kv.float32(10000.0),
        "split.count": kv.uint32(1),
        "tokenizer.ggml.model": kv.string("gpt2"),
        "tokenizer.ggml.tokens": kv.strings([f"token {number} 中" for number in range(40)]),
        "tokenizer.ggml.scores": kv.float32s([0.5] * 40),
        "tokenizer.chat_template": kv.string("{% for m in messages %}{{ m.content }}{% endfor %}"),
        "tokenizer.ggml.add_bos_token": kv.boolean(True),
    }
    tensors = [
        kv.TensorLayout("token_embd.weight", (40, 64), "Q8_0"),
        kv.TensorLayout("blk.0.attn_q.weight", (64, 64), "Q4_0"),
        kv.TensorLayout("blk.0.ffn_up.weight", (3, 64), "F16"),
        kv.TensorLayout("output_norm.weight", (64,), "F32"),
    ]
    return kv.encode_header(metadata, tensors) + b"".join(bytes(t.nbytes + kv.padding(t.nbytes)) for t in tensors)


def safetensors_seed() -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "note": 'a "quoted" \\ word, 中'}}
    at = 0
    for number, (dtype, bits) in enumerate([("BF16", 16), ("F32", 32), ("F8_E4M3", 8), ("I64", 64), ("U8", 8)] * 3):
        shape = [number + 1, 8]
        size = shape[0] * shape[1] * bits // 8
        entries[f"model.layers.{number}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(at)


def flip(data: bytearray, chance: random.Random, header: int) -> None:
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(header)] ^= 1 << chance.randrange(8)


def extreme(data: bytearray, chance: random.Random, header: int) -> None:
    """Set a field of four or eight bytes to a number at which sizes overflow."""
    width = chance.choice([4, 8])
    at = chance.randrange(max(1, header - width))
    number = chance.choice(EXTREMES) + chance.choice([-1, 0, 0, 1])
    data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")


def truncate(data: bytearray, chance: random.Random, header: int) -> None:
    del data[chance.randrange(len(data)) :]


def splice(data: bytearray, chance: random.Random, header: int) -> None:
    """Copy a piece to another place, over what is there or in between: entries and keys twice, nested arrays."""
    begin = chance.randrange(header)
    piece = data[begin : begin + chance.choice([1, 4, 8, 16, 64, 256])]
    at = chance.randrange(header)
    data[at : at + chance.choice([0, 0, len(piece)])] = piece


def remove(data: bytearray, chance: random.Random, header: int) -> None:
    at = chance.randrange(header)
    del data[at : at + chance.choice([1, 4, 8, 64])]


def insert(data: bytearray, chance: random.Random, header: int) -> None:
    """Put a token of the format where it does not belong."""
    tokens = [
        b'"', b"{", b"}", b"[" * 5000, b"{" * 3000, b",", b":", b"\\u0000", b"\\ud800", b"null", b"1e999",
        b"-1", b"NaN", b"9" * 5000, b"\xff\xfe",
        b'"a":{},', b'"__metadata__":{},', b"[18446744073709551615]", b"\x00" * 64,
        struct.pack("<IIQ", 9, 9, 1 << 40), struct.pack("<IIQ", 9, 8, 1 << 22), struct.pack("<Q", 1 << 63),
    ]  # fmt: skip
    at = chance.randrange(header)
    data[at:at] = chance.choice(tokens)


MUTATIONS = (flip, extreme, truncate, splice, remove, insert)


def mutations(seed: bytes, header: int, count: int, number: int) -> Iterator[tuple[Read, int]]:
    """Yield `count` mutated files, always the same for the same `number`."""
    chance = random.Random(number)
    for _ in range(count):
        data = bytearray(seed)
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            if data:
                chance.choice(MUTATIONS)(data, chance, min(header, len(data)))
        if seed[:4] != b"GGUF" and chance.random() < 0.7 and len(data) > 8:
            data[:8] = struct.pack("<Q", max(2, header - 8 + len(data) - len(seed)))  # so that the JSON is looked at
        yield in_memory(bytes(data))


def in_memory(data: bytes) -> tuple[Read, int]:
    def read(start: int, stop: int) -> bytes:
        assert 0 <= start <= stop <= len(data), "read outside the file"
        return data[start:stop]

    return read, len(data)


def bombs(kind: str) -> Iterator[tuple[Read, int]]:
    """Yield files that are larger than their headers need to be, made while they are read."""
    if kind == "gguf":
        many = struct.pack("<IQQ", 3, 0, 1 << 16)
        yield endless(b"GGUF" + many + entry(9, 8, 4 << 20), bytes(8), 300 << 20)  # empty strings
        yield endless(b"GGUF" + many + entry(9, 8, 4 << 20), struct.pack("<Q56s", 56, b"x" * 56), 300 << 20)
        yield endless(b"GGUF" + many + entry(9, 8, 1 << 10), struct.pack("<Q", 1 << 18) + bytes(1 << 18), 300 << 20)
        yield endless(b"GGUF" + many + entry(9, 10, 30 << 20), bytes(1 << 10), 300 << 20)  # a long array of numbers
        text = "🙂".encode() + b"x" * ((1 << 24) - 4)  # one character that makes a string four times as large
        yield endless(b"GGUF" + many, struct.pack("<Q", 1) + b"k" + struct.pack("<IQ", 8, len(text)) + text, 300 << 20)
        tensor = struct.pack("<Q", 8) + b"tensor00" + struct.pack("<IQIQ", 1, 32, 0, 0)
        yield endless(b"GGUF" + struct.pack("<IQQ", 3, 1 << 16, 0), tensor, 300 << 20)
        return
    size = struct.pack("<Q", 100_000_000)
    for unit in (
        b"[", b'{"a":', b'"a', b'\\"', b" ", b'"a":{},', b"\xf0\x9f\x99\x82",
        b'"__metadata__":{"k":"' + b"v" * 1000 + b'"},',
    ):  # fmt: skip
        yield endless(size + b"{", unit, 110_000_000)
        yield endless(size + b'{"', unit, 110_000_000)
        yield endless(size + b'{"a":{"dtype":', unit, 110_000_000)
        yield endless(size + b'{"__metadata__":{', unit, 110_000_000)
    yield endless(size + b"{", b'"%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', 110_000_000)


def entry(kind: int, of: int, length: int) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", kind, of, length)


def endless(head: bytes, unit: bytes, size: int) -> tuple[Read, int]:
    """A file of `size` bytes: `head`, and `unit` for ever; a %06d in it counts, so that names differ."""
    width = len(unit % 0) if b"%06d" in unit else len(unit)

    def read(start: int, stop: int) -> bytes:
        assert 0 <= start <= stop <= size, "read outside the file"
        if start < len(head):
            return head[start:stop] + read(len(head), max(stop, len(head)))
        first, last = (start - len(head)) // width, (stop - len(head)) // width + 1
        if b"%06d" in unit:
            block = b"".join(unit % (number % 1_000_000) for number in range(first, last))
        else:
            block = unit * (last - first)
        skip = (start - len(head)) % width
        return block[skip : skip + stop - start]

    return read, size


def read_one(kind: str, read: Read, size: int) -> None:
    path = Path(f"model.{kind}")
    if kind == "safetensors":
        parse_safetensors_header(path, read, size)
        return
    header = parse_gguf_header(path, read, size, read)
    check_servable(header)
    for value in header.metadata.values():
        if isinstance(value, GgufArray):
            assert len(value.read()) == value.length


def peak_mib() -> float:
    """The most memory that this process has had: its own, not what it inherited of the test runner's when it forked."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(kind: str, files: Iterator[tuple[Read, int]]) -> dict[str, object]:
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for read, size in files:
        signal.alarm(ALARM)
        began = time.thread_time()
        try:
            read_one(kind, read, size)
            outcomes["accepted"] += 1
        except (CorruptFileError, UnsupportedModelError) as error:
            refused: CorruptFileError | UnsupportedModelError = error
            outcomes[type(refused).__name__] += 1
            if not refused.hint or len(refused.message) > 400:
                raise
        slowest = max(slowest, time.thread_time() - began)
    signal.alarm(0)
    peak = peak_mib()
    return {"outcomes": outcomes, "slowest_s": round(slowest, 3), "peak_mib": round(peak, 1)}


def main(kind: str, count: int, number: int) -> None:
    seed = gguf_seed() if kind == "gguf" else safetensors_seed()
    parse = parse_gguf_header if kind == "gguf" else parse_safetensors_header
    header = parse(Path("seed"), *in_memory(seed)).data_offset
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    read_one(kind, *in_memory(seed))  # the seed itself is good
    files = bombs(kind) if count == 0 else mutations(seed, header, count, number)
    print(json.dumps(run(kind, files)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
