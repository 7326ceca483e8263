"""Models made on the spot for tests on real engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.runtimes import pool


@pytest.fixture(scope="session")
def rambling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the demo's shape with random weights, which under greedy decoding never comes to an end."""
    from safetensors.numpy import load_file, save_file

    target = tmp_path_factory.mktemp("rambling") / "rambling"
    shutil.copytree(DEMO_DIRECTORY, target, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf"))
    config = json.loads((target / "config.json").read_text()) | {"max_position_embeddings": 32768}
    (target / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(7)
    shapes = load_shapes(DEMO_DIRECTORY / "model.safetensors")
    weights = {name: random.normal(0, 0.3, shape).astype(np.float16) for name, shape in shapes.items()}
    for name, weight in weights.items():
        if weight.ndim == 1:
            weight[:] = 1
        if "embed_tokens" in name:
            weight[:3] = 0  # the control tokens: a logit of 0 never wins against thousands of random ones
    save_file(weights, target / "model.safetensors")
    assert load_file(target / "model.safetensors").keys() == shapes.keys()
    return target


def load_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from qlangchain.artifacts.headers import read_safetensors_header

    return {name: tensor.shape for name, tensor in read_safetensors_header(path).tensors.items()}


@pytest.fixture(scope="module", autouse=True)
def _no_engine_is_left() -> Iterator[None]:
    yield
    pool.shared().close()
