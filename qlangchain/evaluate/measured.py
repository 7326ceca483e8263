"""A timed run as the record that corrects later predictions of speed: beside what had been predicted without it."""

from __future__ import annotations

import datetime
from typing import Any

from qlangchain.artifacts.headers import GgufArray, read_gguf_header
from qlangchain.errors import QlangchainError
from qlangchain.pipeline import Prepared
from qlangchain.selection import speed
from qlangchain.selection.formats import canonical
from qlangchain.selection.speed import Measurement
from qlangchain.types import Artifact, Hardware, Method

_EMBEDDINGS = ("token_embd.weight", "model.embed_tokens.weight")
_HEADS = ("output.weight", "lm_head.weight")


def as_measurement(prepared: Prepared, tokens_per_second: float, machine: Hardware) -> Measurement | None:
    """Return the record of a run of the whole model on one device; None where its speed cannot be predicted.

    The context is nearly empty in a timed run, so the KV cache is not counted.
    """
    plan, artifact = prepared.plan, prepared.artifact
    try:
        weights, layers = _read_per_token(artifact)
    except (QlangchainError, OSError):
        return None
    if plan.gpu_layers == -1 and machine.gpus:
        device, load = "gpu", speed.on_gpu(machine.gpus[0], machine, weights, 0, layers)
    elif plan.gpu_layers == 0:
        device, load = "cpu", speed.on_cpu(machine, weights, 0, layers, plan.threads)
    else:
        return None  # shared between devices: which part was slow cannot be told
    method = artifact.method if artifact.method in (Method.GPTQ, Method.AWQ) else None
    predicted = speed.decode([load], format=artifact.format, runtime=plan.runtime, method=method)
    return Measurement(
        machine=speed.machine_of(machine),
        runtime=plan.runtime,
        device=device,
        format=canonical(artifact.format, method),
        artifact=artifact.digest,
        predicted=predicted.expected,
        measured=tokens_per_second,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _read_per_token(artifact: Artifact) -> tuple[float, int]:
    """The bytes of weights that are read for one token, and the number of layers."""
    if artifact.path.is_dir():
        from qlangchain.artifacts.headers import read_safetensors_header
        from qlangchain.artifacts.source import read_config

        sizes = {
            tensor.name: tensor.nbytes
            for file in sorted(artifact.path.glob("*.safetensors"))
            for tensor in read_safetensors_header(file).tensors.values()
        }
        config = read_config(artifact.path)
        layers = int({**config, **(config.get("text_config") or {})}.get("num_hidden_layers") or 0)
        return _bytes(sizes), layers
    header = read_gguf_header(artifact.path)
    blocks: Any = header.get("block_count")
    count = 0 if isinstance(blocks, GgufArray) else int(blocks or 0)
    return _bytes({tensor.name: tensor.nbytes for tensor in header.tensors}), count


def _bytes(sizes: dict[str, int]) -> float:
    embedding = sum(sizes.get(name, 0) for name in _EMBEDDINGS)
    tied = not any(name in sizes for name in _HEADS)
    return speed.bytes_per_token(sum(sizes.values()), embedding_bytes=embedding, tied=tied)
