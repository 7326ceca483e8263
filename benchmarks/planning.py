"""How long choosing takes: `python benchmarks/planning.py` prints the table and a whole plan against their limits.

The plan is made of local facts (the demo model's files, this machine, its engines) as `qlangchain.plan` makes it,
once everything that is read only once has been read; the first plan of a process is printed beside it.
"""

from __future__ import annotations

import argparse
import time
import timeit
from collections.abc import Callable

TABLE_LIMIT = 50e-6  # seconds, for one answer of the table
PLAN_LIMIT = 20e-3  # seconds, for one plan of local facts


def best_of(call: Callable[[], object], *, number: int, repeat: int = 7) -> float:
    """Return the seconds of one call, the best of some rounds: what the code takes, not what else the machine does."""
    return min(timeit.repeat(call, number=number, repeat=repeat)) / number


def main() -> None:
    """Print both figures; exit with 1 where one is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="'demo', or the path of a model")
    parser.add_argument("--profile", action="store_true", help="show where the time of a plan goes")
    given = parser.parse_args()

    from qlangchain import choose_quantization_method, pipeline, plan

    begun = time.perf_counter()
    plan(given.model, offline=True)
    first = time.perf_counter() - begun
    source = pipeline.source_of(given.model, offline=True)
    wanted = pipeline.requirements()
    table = best_of(lambda: choose_quantization_method("personal", "cpu", True), number=2000)
    chosen = best_of(lambda: pipeline.choose(source, wanted), number=3)
    whole = best_of(lambda: plan(given.model, offline=True), number=3)
    print(f"choose_quantization_method   {table * 1e6:9.1f} us   limit {TABLE_LIMIT * 1e6:.0f} us")
    print(f"plan, facts at hand          {chosen * 1e3:9.1f} ms   limit {PLAN_LIMIT * 1e3:.0f} ms")
    print(f"plan, with looking at files  {whole * 1e3:9.1f} ms")
    print(f"plan, first of the process   {first * 1e3:9.1f} ms")
    if given.profile:
        import cProfile

        cProfile.runctx("pipeline.choose(source, wanted)", {}, locals(), sort="cumtime")
    raise SystemExit(table > TABLE_LIMIT or chosen > PLAN_LIMIT)


if __name__ == "__main__":
    main()
