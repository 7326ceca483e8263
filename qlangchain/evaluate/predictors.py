"""Models as givers of logits, in the child process that has nothing else in memory.

A directory is loaded by transformers; GPTQ and AWQ weights are computed from their codes first, as their format says,
so that no kernel of theirs is needed. A GGUF file runs on its real engine where llama-cpp-python is installed; else
its tensors are dequantized into the same transformers model, which leaves out that llama.cpp rounds activations, too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qlangchain.errors import CorruptFileError, MissingDependencyError, NoWeightsError, UnsupportedModelError

ON_LLAMA_CPP = "llama.cpp, its own kernels"
_TORCH_HINT = "pip install 'qlangchain[transformers]'"


class Predictor(Protocol):
    """A model that is loaded. `how` says by what, for the report."""

    how: str

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits (tokens, vocabulary) after each of the tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without what the tokenizer puts before every text."""
        ...

    @property
    def prefix(self) -> list[int]:
        """What the tokenizer puts before every text, mostly one token or none."""
        ...

    @property
    def context(self) -> int:
        """The longest context that the model was made for, in tokens."""
        ...


def open_predictor(path: Path, source: Path | None, *, length: int, threads: int) -> Predictor:
    """Load a directory, or a GGUF file, for chunks of at most `length` tokens.

    `source` is the full-precision directory that the file was made from, where there is one; config and tokenizer
    are taken from it. Raises MissingDependencyError, UnsupportedModelError or CorruptFileError.
    """
    if path.is_dir():
        return _Transformers(path, path, threads)
    if importlib.util.find_spec("llama_cpp") is not None:
        return _LlamaCpp(path, length, threads)
    return _Transformers(path, source, threads)


@contextlib.contextmanager
def _plain_buffers(low_level: Any) -> Iterator[None]:
    """Load without copies of the weights in a processor's own layout, which the class `Llama` has no argument for.

    They only make it faster, and the kernels for one of them (AMX) end the process on some virtual machines.
    """
    usual = low_level.llama_model_default_params

    def plain() -> Any:
        params = usual()
        params.use_extra_bufts = False
        return params

    low_level.llama_model_default_params = plain
    try:
        yield
    finally:
        low_level.llama_model_default_params = usual


class _LlamaCpp:
    def __init__(self, path: Path, length: int, threads: int) -> None:
        import llama_cpp  # type: ignore[import-not-found, unused-ignore]

        try:
            with _plain_buffers(llama_cpp.llama_cpp):
                self._llama: Any = llama_cpp.Llama(
                    str(path), n_ctx=length, n_batch=length, n_threads=threads, n_threads_batch=threads,
                    logits_all=True, verbose=False,
                )  # fmt: skip
        except ValueError as error:
            raise CorruptFileError(f"llama.cpp does not load {path.name}: {error}.", hint="Make it anew.") from error
        self.how = ON_LLAMA_CPP

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self._llama.reset()
        self._llama.eval(list(tokens))
        scores: npt.NDArray[np.float32] = self._llama.scores[: len(tokens)]
        return scores

    def encode(self, text: str) -> list[int]:
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=False))

    @property
    def prefix(self) -> list[int]:
        return list(self._llama.tokenize(b"", add_bos=True))[:1]

    @property
    def context(self) -> int:
        return int(self._llama._model.n_ctx_train())


class _Transformers:
    """`path` is a directory or a GGUF file; config and tokenizer come from the directory `home`, else from the file."""

    def __init__(self, path: Path, home: Path | None, threads: int) -> None:
        for name in ("torch", "transformers"):
            if importlib.util.find_spec(name) is None:
                raise MissingDependencyError(f"Judging predictions needs {name}.", hint=_TORCH_HINT)
        import torch

        torch.set_num_threads(threads)
        self._torch: Any = torch
        self._place: dict[str, Any] = {"local_files_only": True}
        self._home = home or path.parent
        if home is None:
            self._place["gguf_file"] = path.name
        self._tokenizer: Any = None
        with _quiet():
            self.model, self.how = self._load(path)
        self.model.eval()

    def _load(self, path: Path) -> tuple[Any, str]:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self._home, trust_remote_code=False, **self._place)
        dtype = self._dtype(path)
        named = str(dtype).removeprefix("torch.")
        state = _dequantized(path, config, dtype)
        if state is None:
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype="auto" if hasattr(config, "quantization_config") else dtype,
                trust_remote_code=False, local_files_only=True,
            )  # fmt: skip
            return model, f"transformers, {str(model.dtype).removeprefix('torch.')}"
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        skeleton = _skeleton(config)
        loaded, info = type(skeleton).from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
        if missing := sorted(set(info["missing_keys"])):
            raise CorruptFileError(
                f"{path.name} lacks {missing[0]} and {len(missing) - 1} other tensors.", hint="Make it anew."
            )
        return loaded, f"transformers, {named}, dequantized"

    def _dtype(self, path: Path) -> Any:
        """float32 where it fits with room to spare, or else the 16 bits that most checkpoints have."""
        import psutil

        stored = sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else 0
        # GGUF of 4 bits a weight grows eightfold in float32, a directory of 16 bits twofold.
        needed = 2 * stored if stored else 8 * path.stat().st_size
        available = int(psutil.virtual_memory().available)
        return self._torch.float32 if needed < 0.7 * available else self._torch.bfloat16

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        with self._torch.inference_mode():
            out = self.model(self._torch.tensor([list(tokens)]), use_cache=False).logits[0]
        values: npt.NDArray[np.float32] = out.float().numpy()
        return values

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            with _quiet():
                self._tokenizer = AutoTokenizer.from_pretrained(self._home, trust_remote_code=False, **self._place)
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def prefix(self) -> list[int]:
        return [token for token in self.tokenizer("")["input_ids"][:1] if token == self.tokenizer.bos_token_id]

    @property
    def context(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 20))


def open_transformers(path: Path, source: Path | None, *, threads: int) -> _Transformers:
    """Load a directory or a GGUF file into transformers, whatever other engine is installed."""
    return _Transformers(path, path if path.is_dir() else source, threads)


def _skeleton(config: Any) -> Any:
    """The model of a config without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    models: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return models.from_config(config)


def _dequantized(path: Path, config: Any, dtype: Any) -> dict[str, Any] | None:
    """The tensors of GGUF, GPTQ or AWQ weights under transformers' names; None where it loads them as they are."""
    if path.is_file():
        return _from_gguf(path, config, dtype)
    if not hasattr(config, "quantization_config"):
        return None
    import torch

    from qlangchain.produce.quantized_files import PARTS, open_quantized

    try:
        found = open_quantized(path)
    except (NoWeightsError, UnsupportedModelError):
        return None  # another method, which transformers may know
    layers = set(found.layers())
    parts = {f"{name}.{part}" for name in layers for part in PARTS[found.scheme.method]}
    state = {name: torch.from_numpy(found.read(name)).to(dtype) for name in found.tensors if name not in parts}
    for name in layers:
        state[f"{name}.weight"] = torch.from_numpy(found.layer(name).dequantized()).T.contiguous().to(dtype)
    return state


def _from_gguf(path: Path, config: Any, dtype: Any) -> dict[str, Any]:
    from transformers import modeling_gguf_pytorch_utils

    from qlangchain.artifacts.headers import check_servable, read_gguf_header

    check_servable(read_gguf_header(path))  # the gguf package trusts what a file says
    try:
        load: Any = modeling_gguf_pytorch_utils.load_gguf_checkpoint
        read = load(str(path), return_tensors=True, model_to_load=_skeleton(config), torch_dtype=dtype)
    except (ValueError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"{path.name} cannot be judged without its own engine: {error}",
            hint="pip install 'qlangchain[llama-cpp-python]'",
        ) from error
    return dict(read["tensors"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars and advice of the libraries out of the log, which is for errors."""
    from transformers import utils

    logging: Any = utils.logging

    before = logging.get_verbosity()
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
