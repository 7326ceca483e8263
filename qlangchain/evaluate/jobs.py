"""What runs in child processes, for `toolchains.worker`: judging, answering and quantizing, one model at a time.

Arguments and results are JSON. `progress` is called with a stage, the steps done and their number.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlangchain.errors import CancelledError, InvalidInputError
from qlangchain.evaluate import predictors
from qlangchain.evaluate.figures import Tally
from qlangchain.evaluate.reference import Writer, cut, open_reference, rows_within

Tell = Callable[[str, int, int], None]


def make_reference(
    model: str,
    text: str,
    directory: str,
    *,
    source: str | None = None,
    length: int = 512,
    most: int = 8192,
    limit: int = 2 << 30,
    threads: int = 1,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Write what `model` (a directory or GGUF file) predicts for `text` to `directory`.

    At most `most` tokens are predicted, in chunks of `length`, and the files take at most `limit` bytes. Returns
    `tokens` (predicted), `text_tokens`, `vocabulary`, `perplexity`, and `how` it was loaded.
    """
    loaded = predictors.open_predictor(Path(model), Path(source) if source else None, length=length, threads=threads)
    length = min(length, loaded.context)
    tokens = loaded.encode(text)
    probe = loaded.logits(tokens[:2] or loaded.prefix or [0])
    room = rows_within(limit, probe.shape[-1], shutil.disk_usage(Path(directory).parent).free)
    chunks = cut(tokens, length, prefix=loaded.prefix, most=min(most, room))
    writer = Writer(Path(directory), chunks, probe.shape[-1])
    for index, chunk in enumerate(chunks):
        _check(cancel)
        writer.add(index, loaded.logits(chunk))
        if progress:
            progress("reference", index + 1, len(chunks))
    return {
        "tokens": sum(len(chunk) - 1 for chunk in chunks),
        "text_tokens": len(tokens),
        "vocabulary": int(probe.shape[-1]),
        "perplexity": writer.close(),
        "how": loaded.how,
    }


def score(
    model: str,
    directory: str,
    *,
    source: str | None = None,
    threads: int = 1,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Judge `model` by the reference in `directory`; returns the fields of `Figures`, and `how` it was loaded."""
    reference = open_reference(Path(directory))
    loaded = predictors.open_predictor(
        Path(model), Path(source) if source else None, length=reference.longest, threads=threads
    )
    tally = Tally()
    for index, chunk in enumerate(reference.chunks()):
        _check(cancel)
        logits = loaded.logits([int(token) for token in chunk.tokens])[:-1]
        tally.add(chunk.log_probabilities, chunk.losses, chunk.favourites, logits, chunk.tokens[1:])
        if progress:
            progress("judge", index + 1, len(reference.lengths))
    return {**dataclasses.asdict(tally.figures()), "how": loaded.how}


def answer(
    model: str,
    prompts: Sequence[Sequence[Mapping[str, Any]]],
    *,
    source: str | None = None,
    max_tokens: int = 64,
    threads: int = 1,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Answer conversations greedily on transformers, for weights that no installed engine serves.

    Returns `answers` and `how` the model was loaded. Without a chat template the last message is continued.
    """
    import torch

    loaded = predictors.open_transformers(Path(model), Path(source) if source else None, threads=threads)
    tokenizer, answers = loaded.tokenizer, []
    for index, messages in enumerate(prompts):
        _check(cancel)
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            ids = loaded.encode(text)
        else:
            ids = [*loaded.prefix, *loaded.encode(str(messages[-1]["content"]))]
        if len(ids) + max_tokens > loaded.context:
            raise InvalidInputError(
                f"Prompt {index + 1} takes {len(ids)} tokens, and the context has {loaded.context}.",
                hint="Shorten it, or pass a smaller max_tokens=.",
            )
        batch = torch.tensor([ids])
        with torch.inference_mode():
            out = loaded.model.generate(
                batch, attention_mask=torch.ones_like(batch), max_new_tokens=max_tokens, do_sample=False
            )
        answers.append(tokenizer.decode(out[0, len(ids) :].tolist(), skip_special_tokens=True))
        if progress:
            progress("answer", index + 1, len(prompts))
    return {"answers": answers, "how": loaded.how}


def quantize(
    source: str,
    target: str,
    *,
    method: str,
    bits: int,
    group_size: int,
    work: str | None = None,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> str:
    """Quantize the directory `source` by GPTQ or AWQ into the new directory `target`, calibrated on our own text.

    `work` is where an interrupted run is continued from; it must be on the same disk as the target.
    """
    from qlangchain.produce import awq, gptq

    room = Path(work) if work else None
    produce: Callable[..., Path] = gptq.produce_gptq if method == "GPTQ" else awq.produce_awq
    made = produce(
        Path(source), Path(target), bits=bits, group_size=group_size, progress=progress, cancel=cancel, work=room
    )
    return str(made)


def _check(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise CancelledError("Judging was cancelled.", hint="What was made is kept; call again for the figures.")
