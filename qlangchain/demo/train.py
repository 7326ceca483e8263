"""Train the demo model from the corpus: `python -m qlangchain.demo.train --out DIR`.

The run is seeded and has a fixed number of steps, so that it can be repeated; `--minutes` ends it earlier,
with the learning rate brought down in time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from qlangchain.demo.card import write_card
from qlangchain.demo.encode import Encoded, batches, encode, render, tensors
from qlangchain.demo.evaluate import evaluate
from qlangchain.demo.exercises import training_examples
from qlangchain.demo.questions import Pair, load_pairs
from qlangchain.demo.tokenizer import VOCABULARY, save_tokenizer, train_tokenizer


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run produces."""

    seed: int = 7
    steps: int = 3800
    minutes: float = 0.0
    batch_tokens: int = 4096
    pool: int = 2048
    rate: float = 2e-3
    matrix_rate: float = 0.02
    decay: float = 0.1
    warm_up: int = 60
    easy_until: float = 0.1
    processes: int = 2
    layers: int = 6
    start: str = ""
    questions: float = 0.0


def build_model(tokenizer: Any, layers: int) -> Any:
    """Return a Llama of 256 dimensions with fresh weights in fp32."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    generation: Any = GenerationConfig
    model.generation_config = generation(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad)
    return model


def resumed(directory: Path) -> Any:
    """Return the model of an earlier run in fp32, for a second stage."""
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)


def known_tokenizer(settings: Settings) -> Any:
    """Return the tokenizer of the run that this one goes on from, or None."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(f"{settings.start}/tokenizer.json") if settings.start else None


def tokenizer_texts(pairs: list[Pair], seed: int) -> list[str]:
    """Return what the tokenizer learns from: the trained part of the corpus twice, and a sample of exercises."""
    texts = [text for pair in pairs for text in [pair.answer, pair.answer, *pair.train]]
    return texts + [render(example) for example in training_examples(pairs, Random(seed), 1500)]


def optimizers(model: Any, settings: Settings, rank: int) -> list[Any]:
    """Return AdamW for embedding and norms, and Muon for the weight matrices that this process steps."""
    import torch

    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": [model.model.embed_tokens.weight, *vectors], "weight_decay": 0.0}]
    own = matrices(model)[rank :: settings.processes]
    muon = torch.optim.Muon(own, lr=settings.matrix_rate, weight_decay=settings.decay, momentum=0.95)
    return [torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95), fused=True), muon]


def matrices(model: Any) -> list[Any]:
    """Return the weight matrices but the embedding."""
    return [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]


def summed(parameters: list[Any], extra: float) -> float:
    """Sum the gradients over the processes, and with them one number, which is returned."""
    import torch
    import torch.distributed as dist

    flat: Any = torch.cat([p.grad.flatten() for p in parameters] + [torch.tensor([extra])])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat[:-1].split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))
    return float(flat[-1])


def shared(model: Any, settings: Settings) -> None:
    """Give every process the matrices that the others have stepped."""
    import torch
    import torch.distributed as dist

    for source in range(settings.processes):
        own = matrices(model)[source :: settings.processes]
        flat: Any = torch.cat([p.data.flatten() for p in own])
        dist.broadcast(flat, source)
        for parameter, part in zip(own, flat.split([p.numel() for p in own]), strict=True):
            parameter.data.copy_(part.view_as(parameter))


def train(model: Any, tokenizer: Any, pairs: list[Pair], settings: Settings, rank: int = 0) -> dict[str, Any]:
    """Train in place; return steps, examples, tokens and seconds.

    Each of the processes takes its share of the rows of every batch. On a busy machine two processes of one
    thread wait for each other once a step, where two threads would wait for each other in every operation.
    """
    import torch
    from torch.nn import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    pad = tokenizer.token_to_id("<|endoftext|>")
    parameters = list(model.parameters())
    steppers = optimizers(model, settings, rank)
    base = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    rng = Random(settings.seed)
    started, step, progress, tokens, seen, recent = time.monotonic(), 0, 0.0, 0, 0, 0.0
    waiting: list[list[Encoded]] = []
    while progress < 1:
        if not waiting:
            easy = 0.4 if progress < settings.easy_until else 0.0
            pool = training_examples(pairs, rng, settings.pool, easy, settings.questions)
            seen += len(pool)
            waiting = batches([encode(example, tokenizer) for example in pool], settings.batch_tokens, rng)
        # 1. The rate rises linearly, then follows a cosine down to 2 %.
        factor = min(1.0, (step + 1) / settings.warm_up) * (0.51 + 0.49 * math.cos(math.pi * progress))
        for stepper, rates in zip(steppers, base, strict=True):
            for group, rate in zip(stepper.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        # 2. Right padding needs no attention mask under causal attention; the head sees only answer tokens.
        batch = waiting.pop()
        rows = batch[rank :: settings.processes]
        loss: Any = torch.zeros(())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
        if rows:
            ids, places, targets = (tensor.to(device) for tensor in tensors(rows, pad))
            with torch.autocast(device, torch.bfloat16):
                hidden = model.model(ids, use_cache=False).last_hidden_state
                logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[places])
            answered = sum(stop - start for item in batch for start, stop in item.answers)
            loss = functional.cross_entropy(logits.float(), targets, reduction="sum") / answered
            loss.backward()
        # 3. All processes go by the clock of the first.
        minutes = (time.monotonic() - started) / 60 if rank == 0 else 0.0
        if settings.processes > 1:
            minutes = summed(parameters, minutes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for stepper in steppers:
            stepper.step()
        if settings.processes > 1:
            shared(model, settings)
        # 4. Progress counts steps, or minutes where they run out first.
        step += 1
        tokens += sum(len(item.ids) for item in batch)
        recent += loss.item() * settings.processes
        progress = max(step / settings.steps, minutes / settings.minutes if settings.minutes else 0.0)
        if step % 50 == 0 and rank == 0:
            speed = tokens / max(minutes, 0.01) / 60
            print(f"{step} {minutes:.1f} min, {speed:.0f} tokens/s, loss {recent / 50:.4f}", flush=True)
            recent = 0.0
    return {"steps": step, "examples": seen, "tokens": tokens, "seconds": round(time.monotonic() - started)}


def work(rank: int, out: Path, settings: Settings, meeting: str) -> None:
    """Run one process of the training; the first one saves the model and what is known about the run."""
    import torch
    import torch.distributed as dist

    if settings.processes > 1:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=settings.processes)
    torch.manual_seed(settings.seed)
    pairs = load_pairs()
    tokenizer = known_tokenizer(settings) or train_tokenizer(tokenizer_texts(pairs, settings.seed))
    model = resumed(Path(settings.start)) if settings.start else build_model(tokenizer, settings.layers)
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "settings": asdict(settings)}
    facts |= train(model, tokenizer, pairs, settings, rank)
    if settings.start:  # what came before belongs to the account
        before = json.loads((Path(settings.start) / "training.json").read_text(encoding="utf-8"))
        account = {name: before[name] for name in ("settings", "steps", "examples", "tokens", "seconds")}
        facts["before"] = [*before.get("before", []), account]
    if rank == 0:
        save_tokenizer(tokenizer, out)
        model.to(torch.bfloat16).save_pretrained(out)
        # Some versions of safetensors write a file that only its owner may read.
        (out / "model.safetensors").chmod(0o644)
        (out / "training.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def run(out: Path, settings: Settings) -> None:
    """Train, save in bf16, measure, and write the card beside the model."""
    import torch
    from torch.multiprocessing.spawn import spawn

    out.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available():
        settings = replace(settings, processes=1)
    with tempfile.TemporaryDirectory() as directory:
        arguments = (out, settings, f"{directory}/meeting")
        if settings.processes > 1:
            start: Any = spawn
            start(work, arguments, nprocs=settings.processes)
        else:
            work(0, *arguments)
    facts = json.loads((out / "training.json").read_text(encoding="utf-8"))
    facts["report"] = evaluate(out)
    (out / "training.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
    write_card(facts, load_pairs(), out / "card.md")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=Settings.minutes, help="end earlier than the fixed steps")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--matrix-rate", type=float, default=Settings.matrix_rate)
    parser.add_argument("--layers", type=int, default=Settings.layers)
    parser.add_argument("--start", default=Settings.start, help="directory of an earlier run to go on from")
    parser.add_argument(
        "--questions", type=float, default=Settings.questions, help="share of questions, if not the usual"
    )
    parser.add_argument("--processes", type=int, default=Settings.processes)
    given = vars(parser.parse_args())
    run(given.pop("out"), Settings(**given))


if __name__ == "__main__":
    main()
