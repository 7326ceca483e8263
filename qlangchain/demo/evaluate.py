"""Measure a trained demo model on the fixed sets: how many greedy answers are exactly the wanted ones.

A greedy answer equals the wanted text if and only if, with the wanted text as input, every next token is the
most probable one. So one forward pass per batch replaces generation; only wrong answers are generated.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from qlangchain.demo.context_exercises import UNKNOWN, UNKNOWN_ZH
from qlangchain.demo.encode import batches, encode, render, tensors
from qlangchain.demo.example import Example
from qlangchain.demo.exercises import measured_sets
from qlangchain.demo.questions import load_pairs

Report = dict[str, dict[str, Any]]


def load(directory: Path) -> tuple[Any, Any]:
    """Load a model directory in its own precision; return the model and its `tokenizers.Tokenizer`."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    return model.to(device).eval(), Tokenizer.from_file(str(directory / "tokenizer.json"))


def right_tokens(model: Any, tokenizer: Any, examples: list[Example]) -> list[list[bool]]:
    """Say for every token of every last answer whether greedy decoding would have chosen it."""
    import torch

    pad = tokenizer.token_to_id("<|endoftext|>")
    encoded = [encode(example, tokenizer) for example in examples]
    number = {id(item): place for place, item in enumerate(encoded)}
    found: list[list[bool]] = [[] for _ in examples]
    with torch.inference_mode():
        for group in batches(encoded, 8192):
            ids, places, targets = tensors(group, pad, last_only=True)
            hidden = model.model(ids.to(model.device), use_cache=False).last_hidden_state
            hidden = hidden.reshape(-1, hidden.shape[-1])[places.to(model.device)]
            right = (model.lm_head(hidden).argmax(-1).cpu() == targets).tolist()
            for item in group:
                start, stop = item.answers[-1]
                found[number[id(item)]], right = right[: stop - start], right[stop - start :]
    return found


def generate(model: Any, tokenizer: Any, example: Example, limit: int = 80) -> str:
    """Return the greedy answer to the last user or tool message of a conversation."""
    import torch

    ids = tokenizer.encode(render(example, prompt_only=True), add_special_tokens=False).ids
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    batch = torch.tensor([ids], device=model.device)
    mask = torch.ones_like(batch)
    out = model.generate(
        batch, attention_mask=mask, max_new_tokens=limit, do_sample=False, eos_token_id=end, pad_token_id=pad
    )
    text: str = tokenizer.decode(out[0, len(ids) :].tolist(), skip_special_tokens=True)
    return text


def _name_right(tokenizer: Any, example: Example, right: list[bool]) -> bool:
    """Say whether every token up to the argument list of a call is right, so that the tool's name is."""
    ids = tokenizer.encode(example.answer, add_special_tokens=False).ids
    for length in range(1, len(ids) + 1):
        if '"arguments"' in tokenizer.decode(ids[:length]):
            return all(right[: length - 1])
    return False


def evaluate(directory: Path, sets: dict[str, list[Example]] | None = None, generated: int = 60) -> Report:
    """Return, by set, the count `n`, the share `exact`, and what else the set tells; generate `generated` wrong ones."""
    model, tokenizer = load(directory)
    report: Report = {}
    for name, examples in (sets or measured_sets(load_pairs())).items():
        right = right_tokens(model, tokenizer, examples)
        wrong = [example for example, tokens in zip(examples, right, strict=True) if not all(tokens)]
        row: dict[str, Any] = {"n": len(examples), "exact": round(1 - len(wrong) / len(examples), 4)}
        if name.startswith("tool call"):
            names = [_name_right(tokenizer, e, tokens) for e, tokens in zip(examples, right, strict=True)]
            row["name_right"] = round(sum(names) / len(names), 4)
        if "question" in name:
            row["worst"] = Counter(example.id for example in wrong).most_common(12)
        else:
            answers = [(example, generate(model, tokenizer, example)) for example in wrong[:generated]]
            row["wrong"] = [(example.answer, answer) for example, answer in answers[:12]]
            if name.startswith("copy"):
                refused = sum(answer in (UNKNOWN, UNKNOWN_ZH) for _, answer in answers)
                row["false_refusals"] = round(refused / len(examples), 4)
        report[name] = row
    return report


def main() -> None:
    """Print the report of a model directory as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=Path(__file__).parent / "model")
    print(json.dumps(evaluate(parser.parse_args().directory), ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
