"""Keep answers in a file: a call that was made before costs no engine, in this process or the next."""

import tempfile
import time
from pathlib import Path

from qlangchain import get_llm, set_cache

with tempfile.TemporaryDirectory() as folder:
    set_cache(Path(folder) / "answers.sqlite")
    llm = get_llm("demo", hardware="cpu", temperature=0, preload=True)
    for attempt in ("decoded", "from the cache"):
        start = time.perf_counter()
        answer = llm.invoke("What is GPTQ?")
        print(f"{attempt}, {(time.perf_counter() - start) * 1000:.1f} ms: {answer}")
    set_cache(None)
