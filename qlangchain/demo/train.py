"""Train the demo model from the corpus: `python -m qlangchain.demo.train --out DIR`.

The run is seeded and has a fixed number of steps, so that it can be repeated; `--minutes` ends it earlier,
with the learning rate brought down in time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from qlangchain.demo.card import write_card
from qlangchain.demo.encode import batches, encode, render, tensors
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
    warm_up: int = 100
    easy_until: float = 0.1
    muon: bool = True
    layers: int = 6


def build_model(tokenizer: Any, layers: int) -> Any:
    """Return a Llama of 256 dimensions with fresh weights in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=True,
        initializer_range=0.02, bos_token_id=None, eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"), rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=False, eos_token_id=[config.eos_token_id, config.pad_token_id],
                                   pad_token_id=config.pad_token_id)  # fmt: skip
    return model


def tokenizer_texts(pairs: list[Pair], seed: int) -> list[str]:
    """Return what the tokenizer learns from: the trained part of the corpus twice, and a sample of exercises."""
    texts = [text for pair in pairs for text in [pair.answer, pair.answer, *pair.train]]
    return texts + [render(example) for example in training_examples(pairs, Random(seed), 1500)]


def optimizers(model: Any, settings: Settings) -> list[Any]:
    """Return AdamW, and with `muon` also Muon for the weight matrices; embeddings and norms stay with AdamW."""
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    vectors = [p for name, p in model.named_parameters() if p.ndim == 1]
    embedding = [model.model.embed_tokens.weight]
    groups = [{"params": embedding, "weight_decay": 0.0}, {"params": vectors, "weight_decay": 0.0}]
    if settings.muon:
        found = [
            torch.optim.Muon(matrices, lr=settings.matrix_rate, weight_decay=settings.decay, momentum=0.95)
        ]
    else:
        found = []
        groups.append({"params": matrices, "weight_decay": settings.decay})
    return [torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.95), fused=True), *found]


def train(model: Any, tokenizer: Any, pairs: list[Pair], settings: Settings) -> dict[str, Any]:
    """Train in place; return steps, tokens and seconds."""
    import torch
    import torch.nn.functional as F

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    pad = tokenizer.token_to_id("<|endoftext|>")
    steppers = optimizers(model, settings)
    base = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    rng = Random(settings.seed)
    started, step, progress, tokens, seen, waiting = time.monotonic(), 0, 0.0, 0, 0, []
    losses: list[float] = []
    while progress < 1:
        if not waiting:
            easy = 0.4 if progress < settings.easy_until else 0.0
            pool = training_examples(pairs, rng, settings.pool, easy)
            seen += len(pool)
            waiting = batches([encode(example, tokenizer) for example in pool], settings.batch_tokens, rng)
        ids, places, targets = (tensor.to(device) for tensor in tensors(waiting.pop(), pad))
        # 1. The rate rises linearly, then follows a cosine down to 2 %.
        factor = min(1.0, (step + 1) / settings.warm_up) * (0.51 + 0.49 * math.cos(math.pi * progress))
        for stepper, rates in zip(steppers, base, strict=True):
            for group, rate in zip(stepper.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        # 2. Right padding needs no attention mask under causal attention; the head sees only answer tokens.
        with torch.autocast(device, torch.bfloat16):
            hidden = model.model(ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[places])
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        # 3. Progress counts steps, or minutes where they run out first.
        step += 1
        tokens += ids.numel()
        losses.append(loss.item())
        minutes = (time.monotonic() - started) / 60
        progress = max(step / settings.steps, minutes / settings.minutes if settings.minutes else 0.0)
        if step % 50 == 0:
            print(
                f"{step} {minutes:.1f} min, {tokens / minutes / 60:.0f} tok/s, loss {sum(losses[-50:]) / 50:.4f}",
                flush=True,
            )
    return {"steps": step, "examples": seen, "tokens": tokens, "seconds": round(time.monotonic() - started)}


def run(out: Path, settings: Settings) -> None:
    """Train, save in bf16, measure, and write the card beside the model."""
    import torch

    torch.manual_seed(settings.seed)
    pairs = load_pairs()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(tokenizer_texts(pairs, settings.seed))
    save_tokenizer(tokenizer, out)
    model = build_model(tokenizer, settings.layers)
    parameters = sum(p.numel() for p in model.parameters())
    facts = {"parameters": parameters, "pairs": len(pairs), "settings": asdict(settings)}
    facts |= train(model, tokenizer, pairs, settings)
    model.to(torch.bfloat16).save_pretrained(out)
    facts["report"] = evaluate(out)
    (out / "training.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
    write_card(facts, pairs, out / "card.md")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=Settings.minutes, help="end earlier than the fixed steps"
    )
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--matrix-rate", type=float, default=Settings.matrix_rate)
    parser.add_argument("--layers", type=int, default=Settings.layers)
    parser.add_argument(
        "--muon",
        action=argparse.BooleanOptionalAction,
        default=Settings.muon,
        help="Muon for the weight matrices",
    )
    given = vars(parser.parse_args())
    run(given.pop("out"), Settings(**given))


if __name__ == "__main__":
    main()
