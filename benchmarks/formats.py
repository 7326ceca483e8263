"""The demo model in every format: exact answers, agreement, KL divergence, by `compare`. Makes the README's table.

    python benchmarks/formats.py [--questions 300] [--formats ...]

Half of the questions are phrased as the model was trained on them, half as it never saw them; they are taken evenly
from the fixed sets of qlangchain/demo/exercises.py. What is found is written to qlangchain/demo/formats.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qlangchain.demo.exercises import measured_sets
from qlangchain.demo.questions import load_pairs
from qlangchain.evaluate import compare
from qlangchain.evaluate.tables import problems, summary
from qlangchain.evaluate.texts import Prompt
from qlangchain.toolchains.worker import Progress

FORMATS = "bf16,fp16,Q8_0,Q6_K,Q5_K_M,Q5_1,Q4_K_M,Q4_0,Q3_K_M,Q2_K,gptq-8,gptq-4,awq-4"
TARGET = Path(__file__).parents[1] / "qlangchain" / "demo" / "formats.json"


def questions(count: int) -> list[Prompt]:
    """`count` questions with the answers that are wanted, half of them in phrasings that were never trained."""
    found: list[Prompt] = []
    for kind in ("trained", "held-out"):
        sets = [examples for name, examples in measured_sets(load_pairs()).items() if name.startswith(kind)]
        every = [example for examples in sets for example in examples]
        step = max(1, len(every) * 2 // count)
        chosen = every[::step][: count // 2]
        found += [Prompt(tuple(example.messages[:-1]), example.answer) for example in chosen]
    return found


def main() -> None:
    """Measure, write the file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--out", type=Path, default=TARGET)
    given = parser.parse_args()

    def tell(seen: Progress) -> None:
        if seen.done == seen.total:
            print(seen.stage, file=sys.stderr, flush=True)

    text = "\n\n".join(f"{pair.train[0]}\n{pair.answer}" for pair in load_pairs())
    found = compare(
        "demo", given.formats, text, prompts=questions(given.questions), hardware="cpu", max_tokens=160, progress=tell
    )
    given.out.write_text(found.to_json() + "\n", encoding="utf-8")
    print(summary(found).markdown())
    print("\n".join(problems(found)))


if __name__ == "__main__":
    main()
