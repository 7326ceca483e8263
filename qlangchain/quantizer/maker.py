"""`ModelQuantizer` and `quantize`: one model into GPTQ, AWQ, GGUF or 8-bit integers."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from qlangchain import pipeline
from qlangchain.artifacts.source import read_config
from qlangchain.errors import InvalidInputError, QlangchainWarning, UnsupportedModelError
from qlangchain.produce import calibration
from qlangchain.produce.datasets import Dataset, read_texts
from qlangchain.produce.estimates import Estimate
from qlangchain.quantizer import foreign
from qlangchain.quantizer.made import Made
from qlangchain.quantizer.weights import Weights, full_precision
from qlangchain.toolchains import environments, worker
from qlangchain.toolchains.worker import Progress

_JOBS: Final = "qlangchain.produce.jobs"
Imatrix = bool | str | os.PathLike[str] | Sequence[str] | None


class ModelQuantizer:
    """Quantizes one model into a directory.

    Nothing of torch is loaded in this process: the work is done by a child, which may be cancelled, limited in
    memory and killed without harm. What is finished of it is kept for the next call.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        *,
        progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        memory_limit: int | None = None,
        overwrite: bool = False,
        offline: bool | None = None,
    ) -> None:
        """Name the model and where the results go.

        Args:
            model_path: a directory of full-precision safetensors, a hub id, or "demo".
            output_dir: is made where it is not there.
            progress: called with stages, steps and the seconds that are left.
            cancel: set it from another thread to end the work with a `CancelledError`.
            memory_limit: bytes of memory that the child may take; more ends it with a `ProductionError`.
            overwrite: whether a result of the same name is replaced; otherwise it is an `InvalidInputError`.
            offline: whether the network is forbidden; None asks the settings.

        """
        self.model_path = model_path
        self.output_dir = Path(output_dir).expanduser()
        self.overwrite = overwrite
        self.made: Made | None = None
        self._watching: dict[str, Any] = {"progress": progress, "cancel": cancel, "memory_limit": memory_limit}
        self._cancel = cancel
        self._offline = pipeline.is_offline(offline)
        self._weights: Weights | None = None

    @property
    def weights(self) -> Weights:
        """The full-precision weights; fetched when they are first asked for, where the model is a hub id."""
        if self._weights is None:
            self._weights = full_precision(self.model_path, offline=self._offline, cancel=self._cancel)
        return self._weights

    def method(self, name: str) -> Callable[..., Path]:
        """Return the method that makes "gptq", "awq", "gguf" or "int8"; `InvalidInputError` for another name."""
        methods: dict[str, Callable[..., Path]] = {
            "gptq": self.quantize_gptq, "awq": self.quantize_awq,
            "gguf": self.quantize_gguf, "int8": self.quantize_int8,
        }  # fmt: skip
        word = name.strip().lower() if isinstance(name, str) else ""
        if word not in methods:
            raise InvalidInputError(f"The method {name!r} is not known.", hint=f"Known: {', '.join(methods)}.")
        return methods[word]

    def watch(self, progress: Callable[[Progress], None] | None) -> None:
        """Tell `progress` from now on."""
        self._watching["progress"] = progress

    def quantize_gptq(
        self,
        bits: int = 4,
        group_size: int = 128,
        desc_act: bool = False,
        dataset: Dataset = None,
        *,
        samples: int | None = None,
        sequence_length: int | None = None,
        tool: str | None = None,
    ) -> Path:
        """Make `<output_dir>/gptq-<bits>bit` and return its path.

        Args:
            bits: 4 or 8.
            group_size: inputs that share a scale; -1 is all of a layer.
            desc_act: form the groups by importance, which vLLM no longer reads.
            dataset: texts to calibrate on: a list, a file, a name; None is the text that ships with qlangchain.
            samples: how many samples are cut from them; None takes what is there, at most 128.
            sequence_length: tokens of a sample; None is 512.
            tool: "gptqmodel" or "auto-gptq" instead of qlangchain's own producer, in an environment of its own.

        Raises what `produce.directory.produce_directory` raises, `OfflineError`, and `MissingDependencyError`.

        """
        from qlangchain.produce.gptq import GptqRecipe

        GptqRecipe(bits, group_size, desc_act)  # refuses what is wrong before anything is fetched
        settings = {"bits": bits, "group_size": group_size, "desc_act": desc_act}
        return self._directory(
            "gptq", f"gptq-{bits}bit", f"INT{bits}", settings, dataset, samples, sequence_length, tool
        )

    def quantize_awq(
        self,
        bits: int = 4,
        group_size: int = 128,
        calibration_data: Dataset = None,
        *,
        samples: int | None = None,
        sequence_length: int | None = None,
        tool: str | None = None,
    ) -> Path:
        """Make `<output_dir>/awq-4bit` and return its path; the arguments are those of `quantize_gptq`.

        `tool` is "gptqmodel" or "autoawq".
        """
        from qlangchain.produce.awq import AwqRecipe

        AwqRecipe(bits, group_size)
        settings = {"group_size": group_size}
        return self._directory(
            "awq", f"awq-{bits}bit", f"INT{bits}", settings, calibration_data, samples, sequence_length, tool
        )

    def quantize_int8(
        self,
        scheme: str = "gptq",
        group_size: int = 128,
        dataset: Dataset = None,
        *,
        samples: int | None = None,
        sequence_length: int | None = None,
    ) -> Path:
        """Make 8-bit weights for a GPU and return their path; on a CPU `quantize_gguf("Q8_0")` is their like.

        `scheme` is "gptq" (`<output_dir>/gptq-8bit`), or "W8A16" or "W8A8" (whole numbers in the compressed-tensors
        format, `<output_dir>/w8a8`, by llm-compressor in an environment of its own).
        """
        word = scheme.strip().lower()
        if word == "gptq":
            return self.quantize_gptq(8, group_size, False, dataset, samples=samples, sequence_length=sequence_length)
        if word not in ("w8a8", "w8a16"):
            raise InvalidInputError(f"The scheme {scheme!r} is not known.", hint="Known: gptq, W8A16, W8A8.")
        settings = {"bits": 8, "group_size": -1}
        return self._directory(word, word, word.upper(), settings, dataset, samples, sequence_length, "llm-compressor")

    def quantize_gguf(
        self,
        format: str = "Q4_K_M",
        imatrix: Imatrix = None,
        *,
        samples: int | None = None,
        sequence_length: int | None = None,
        divergence: bool | None = None,
    ) -> Path:
        """Make `<output_dir>/<name>-<format>.gguf` and return its path.

        Args:
            format: Q4_K_M, Q8_0 and so on; the types of fewer than 3.5 bits need an importance matrix.
            imatrix: True collects one on the text that ships with qlangchain, a list of texts or a text file on
                that, and the path of a ready one is taken as it is.
            samples: how many samples it is collected on; None takes what is there, at most 100.
            sequence_length: tokens of a sample; None is 512.
            divergence: whether the result is run on held-out text; None does so where the model is small.

        Raises what `produce.gguf.produce_gguf` and `produce.imatrix.collect` raise.

        """
        from qlangchain.produce import gguf_file, kquants

        word = format.strip().upper()
        kquants.check_format(word)
        collect, matrix, texts = self._matrix(imatrix)
        kquants.check_matrix(word, collect or matrix is not None)
        if matrix is not None:
            from qlangchain.produce import imatrix as matrices

            matrices.read(matrix)
        calibration.check_counts(samples, sequence_length)
        weights = self.weights
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", weights.name).strip("-.")[:120] or "model"
        target = self.output_dir / f"{stem}-{word}.gguf"
        self._refuse(target)
        arguments = {
            "source": str(weights.directory), "target": str(target), "format": word, "name": weights.name,
            "imatrix": str(matrix) if matrix else None, "collect": collect, "texts": texts, "samples": samples,
            "sequence_length": sequence_length, "divergence": divergence,
        }  # fmt: skip
        start = time.monotonic()
        _make_directory(self.output_dir)
        try:
            found = worker.run(f"{_JOBS}:gguf", arguments, **self._watching)
        finally:
            gguf_file.clear(target)  # where the child was killed
        self._done(found, target, "GGUF", word, start)
        return target

    def estimate(self, method: str, **settings: Any) -> Estimate:
        """What a production will take, before it begins: `method` is "gptq", "awq" or "gguf".

        `settings` are `bits`, `group_size`, `format`, `samples`, `sequence_length`, and `collect` for an importance
        matrix. Raises what the production would raise about the model.
        """
        arguments = {"source": str(self.weights.directory), "method": method, **settings}
        return Estimate(**worker.run(f"{_JOBS}:estimate", arguments, cancel=self._cancel))

    def _matrix(self, imatrix: Imatrix) -> tuple[bool, Path | None, list[str] | None]:
        """Whether a matrix is to be collected, the file of a ready one, and the texts to collect on."""
        from qlangchain.produce.imatrix import is_matrix

        if imatrix is None or imatrix is False:
            return False, None, None
        if imatrix is True:
            return True, None, None
        if isinstance(imatrix, str | os.PathLike) and is_matrix(Path(imatrix).expanduser()):
            return False, Path(imatrix).expanduser().resolve(), None
        return True, None, read_texts(imatrix, offline=self._offline)

    def _directory(
        self,
        method: str,
        name: str,
        format: str,
        settings: dict[str, Any],
        dataset: Dataset,
        samples: int | None,
        sequence_length: int | None,
        tool: str | None,
    ) -> Path:
        if tool is not None:
            foreign.check(tool, method)
        calibration.check_counts(samples, sequence_length)
        target = self.output_dir / name
        self._refuse(target)
        texts = read_texts(dataset, offline=self._offline)
        tool = tool or self._tool(method)
        cutting: dict[str, Any] = {"texts": texts, "samples": samples, "sequence_length": sequence_length}
        start = time.monotonic()
        with _replacing(target) as place:
            if tool is None:
                found = worker.run(
                    f"{_JOBS}:{method}",
                    {"source": str(self.weights.directory), "target": str(place), **settings, **cutting},
                    **self._watching,
                )
            else:
                found = foreign.make(
                    tool, method, self.weights, place, **{"bits": 4, **settings}, **cutting, **self._watching
                )
        kind = "compressed-tensors" if method.startswith("w8") else method.upper()
        self._done(found, target, kind, format, start)
        return target

    def _tool(self, method: str) -> str | None:
        """Return gptqmodel for an architecture that our own producers do not know, None for ours."""
        from qlangchain.produce.decoders import architectures

        config = read_config(self.weights.directory)
        classes = config.get("architectures")
        name = classes[0] if isinstance(classes, list) and classes else None
        if name in architectures() or config.get("auto_map") or config.get("quantization_config"):
            return None
        if environments.locate("gptqmodel") is None:
            raise UnsupportedModelError(
                f"The architecture {str(name)[:60]!r} is not known here; the library gptqmodel may know it.",
                hint="Run `qlangchain env create gptqmodel` and call again, or choose GGUF.",
            )
        warnings.warn(
            f"{name} is not known here, so the library gptqmodel makes its {method.upper()}.",
            QlangchainWarning,
            stacklevel=5,
        )
        return "gptqmodel"

    def _refuse(self, target: Path) -> None:
        is_there = any(target.iterdir()) if target.is_dir() else target.exists()
        if is_there and not self.overwrite:
            raise InvalidInputError(f"{target} exists already.", hint="Pass overwrite=True, or another output_dir.")

    def _done(self, found: dict[str, Any], target: Path, method: str, format: str, start: float) -> None:
        self.made = Made.of(
            found, path=target, method=method, format=format, source_bytes=self.weights.nbytes,
            seconds=time.monotonic() - start,
        )  # fmt: skip
        for notice in self.made.notices:
            warnings.warn(notice, QlangchainWarning, stacklevel=4)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"The output directory {path} cannot be made: {error.strerror}.", hint="Choose another one."
        ) from error
    if not os.access(path, os.W_OK):
        raise InvalidInputError(f"The output directory {path} cannot be written.", hint="Choose another one.")


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield where to make `target`; what is there already is replaced at the end, and stays where that fails."""
    _make_directory(target.parent)
    if not target.exists():
        yield target
        return
    place = target.with_name(f"{target.name}.new")
    shutil.rmtree(place, ignore_errors=True)
    yield place
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    os.replace(target, aside)
    os.replace(place, target)
    shutil.rmtree(aside, ignore_errors=True)


def quantize(
    model: str | os.PathLike[str],
    method: str = "gguf",
    output_dir: str | os.PathLike[str] = "quantized",
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    memory_limit: int | None = None,
    overwrite: bool = False,
    offline: bool | None = None,
    **settings: Any,
) -> Made:
    """Quantize a model by "gptq", "awq", "gguf" or "int8", and return what was made, which stands for its path.

    `settings` are the arguments of `ModelQuantizer.quantize_<method>`; the others those of `ModelQuantizer`.
    Raises `InvalidInputError` for an unknown method or setting, and what those methods raise.
    """
    quantizer = ModelQuantizer(
        model, output_dir,
        progress=progress, cancel=cancel, memory_limit=memory_limit, overwrite=overwrite, offline=offline,
    )  # fmt: skip
    make = quantizer.method(method)
    known = inspect.signature(make).parameters
    if unknown := settings.keys() - known.keys():
        raise InvalidInputError(f"{method} has no setting {min(unknown)!r}.", hint=f"Known: {', '.join(known)}.")
    make(**settings)
    assert quantizer.made is not None
    return quantizer.made
