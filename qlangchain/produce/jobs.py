"""What runs in child processes, for `toolchains.worker`: making an artifact, estimating it, checking it.

Arguments and results are JSON. `progress` is called with a stage, what is done of it and what there is.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlangchain.artifacts.atomic import read_json, write_json
from qlangchain.artifacts.headers import read_gguf_header
from qlangchain.artifacts.locks import hold
from qlangchain.errors import ArtifactError, MissingDependencyError, ProductionError

if TYPE_CHECKING:
    from qlangchain.produce.verify import Divergence, Report

Tell = Callable[[str, int, int], None]
_LARGEST_CHECKED = 2 << 30  # bytes of a model in 16 bits whose GGUF is run on held-out text without being asked


def gptq(
    source: str,
    target: str,
    bits: int,
    group_size: int,
    desc_act: bool,
    texts: Sequence[str] | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Make a directory by GPTQ; the arguments are those of `produce_gptq`."""
    from qlangchain.produce.directory import produce_directory
    from qlangchain.produce.gptq import GptqRecipe

    recipe = GptqRecipe(bits, group_size, desc_act)
    _, report = produce_directory(
        Path(source), Path(target), recipe,
        texts=texts, samples=samples, sequence_length=sequence_length, progress=progress, cancel=cancel,
    )  # fmt: skip
    return of_report(report)


def awq(
    source: str,
    target: str,
    group_size: int,
    texts: Sequence[str] | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Make a directory by AWQ; the arguments are those of `produce_awq`."""
    from qlangchain.produce.awq import AwqRecipe
    from qlangchain.produce.directory import produce_directory

    _, report = produce_directory(
        Path(source), Path(target), AwqRecipe(group_size=group_size),
        texts=texts, samples=samples, sequence_length=sequence_length, progress=progress, cancel=cancel,
    )  # fmt: skip
    return of_report(report)


def gguf(
    source: str,
    target: str,
    format: str,
    name: str,
    imatrix: str | None = None,
    collect: bool = False,
    texts: Sequence[str] | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    divergence: bool | None = None,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Make a GGUF file. `imatrix` is the file of an importance matrix; with `collect` it is made on `texts`.

    A collected matrix is kept in a hidden directory beside the target until the file is there, so that an interrupted
    run goes on with it. `divergence` says whether the result is run on held-out text; None does so for models that
    are small enough.
    """
    from qlangchain.produce import gguf_check, kquants
    from qlangchain.produce.gguf import plan_gguf, produce_gguf

    def tell(done: int, total: int) -> None:
        if progress:
            progress("write", done, total)

    path = Path(target)
    kquants.check_matrix(format, collect or imatrix is not None)
    plan = plan_gguf(Path(source), "F32")
    room = path.with_name(f".{path.name}.quantizing")
    matrix = Path(imatrix) if imatrix else None
    if collect:
        kquants.quantizer()  # before the long work, not after it
        matrix = _collected(Path(source), room, texts, samples, sequence_length, progress, cancel)
    produce_gguf(Path(source), path, format, name=name, imatrix=matrix, progress=tell, cancel=cancel)
    shutil.rmtree(room, ignore_errors=True)
    header = read_gguf_header(path)
    weights = sum(tensor.nbytes for tensor in header.tensors)
    values = sum(_count(tensor.shape) for tensor in header.tensors)
    is_k = format not in ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
    found = {
        "size_bytes": path.stat().st_size,
        "bits_per_weight": 8 * weights / values,
        "notices": kquants.notices(plan) if is_k else list(plan.notices),
        **_errors([(one.name, one.relative) for one in gguf_check.errors(path, plan) if one.type != "F32"]),
    }
    small = 2 * values <= _LARGEST_CHECKED
    if divergence or (divergence is None and small and format not in ("F32", "F16", "BF16")):
        try:
            found |= _divergence(gguf_check.divergence(path, Path(source), progress=progress, cancel=cancel))
        except (ArtifactError, MissingDependencyError):  # it cannot be run block by block here
            if divergence:
                raise
    return found


def _collected(
    source: Path,
    room: Path,
    texts: Sequence[str] | None,
    samples: int | None,
    length: int | None,
    progress: Tell | None,
    cancel: threading.Event | None,
) -> Path:
    from qlangchain.produce import imatrix

    about = hashlib.sha256(f"{samples} {length} {'default' if texts is None else list(texts)!r}".encode())
    for file in sorted(source.glob("*.safetensors")):
        stat = file.stat()
        about.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    matrix, key = room / "imatrix.gguf", about.hexdigest()
    with hold(room, "work", what=f"making {room.name}", timeout=1.0):
        if read_json(room / "key.json").get("key") == key and matrix.is_file():
            return matrix
        for path in room.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        matrix.unlink(missing_ok=True)
        write_json(room / "key.json", {"key": key})
        found = imatrix.collect(
            source, texts, samples=samples, sequence_length=length, progress=progress, cancel=cancel, work=room
        )
        imatrix.write(found, matrix, dataset="default" if texts is None else "given")
    return matrix


def verify(
    target: str,
    source: str | None = None,
    progress: Tell | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Examine a GPTQ or AWQ directory, or a GGUF file, against the full-precision directory `source`."""
    path = Path(target)
    if path.is_dir():
        from qlangchain.produce.verify import verify_directory

        report = verify_directory(path, Path(source) if source else None, progress=progress, cancel=cancel)
        return {**of_report(report), "problems": list(report.problems)}
    from qlangchain.artifacts.headers import check_servable
    from qlangchain.produce import gguf_check
    from qlangchain.produce.gguf import plan_gguf

    header = read_gguf_header(path)
    check_servable(header)
    found: dict[str, Any] = {"size_bytes": path.stat().st_size, "problems": []}
    if source:
        plan = plan_gguf(Path(source), "F32")
        try:
            found |= _errors([(one.name, one.relative) for one in gguf_check.errors(path, plan) if one.type != "F32"])
            gguf_check.check_errors(path, plan)
            with contextlib.suppress(ArtifactError, MissingDependencyError):  # it cannot be run block by block here
                found |= _divergence(gguf_check.divergence(path, Path(source), progress=progress, cancel=cancel))
        except ProductionError as error:
            found["problems"] = [error.message]
        except KeyError as error:
            found["problems"] = [f"It has no tensor {error}, so it was made from another model."]
    return found


def verify_int8(target: str, source: str, smoothed: bool) -> dict[str, Any]:
    """Examine a directory of 8-bit compressed-tensors; see `int8_check.examine`."""
    from qlangchain.produce import int8_check

    layers, problems = int8_check.examine(Path(target), Path(source), smoothed=smoothed)
    size = sum(path.stat().st_size for path in Path(target).glob("*.safetensors"))
    return {"size_bytes": size, "problems": problems, **_errors([(one.name, one.relative) for one in layers])}


def estimate(
    source: str,
    method: str,
    format: str = "",
    bits: int = 4,
    group_size: int = 128,
    samples: int | None = None,
    sequence_length: int | None = None,
    collect: bool = False,
) -> dict[str, Any]:
    """Estimate seconds, memory, disk and size, each in bytes, of making an artifact; see `estimates.py`."""
    from qlangchain.produce import calibration, estimates

    length = sequence_length or calibration.LENGTH
    if method == "gguf":
        from qlangchain.produce.imatrix import SAMPLES

        tokens = (samples or SAMPLES) * length if collect else 0
        return asdict(estimates.gguf(Path(source), format, matrix_tokens=tokens))
    count = samples or calibration.SAMPLES
    return asdict(estimates.blocks(Path(source), method, bits, group_size, (count, length)))


def cut(source: str, texts: Sequence[str] | None, samples: int | None, sequence_length: int | None) -> list[list[int]]:
    """The samples of token ids that our own producers would calibrate on, for other people's."""
    from qlangchain.produce import calibration

    length = sequence_length or calibration.LENGTH
    tokenizer = calibration.load_tokenizer(Path(source))
    chosen = calibration.default_texts() if texts is None else texts
    found: list[list[int]] = calibration.samples_of(tokenizer, chosen, samples, length).tolist()
    return found


def of_report(report: Report) -> dict[str, Any]:
    """A report as JSON."""
    found = {
        "size_bytes": report.nbytes,
        "notices": [],
        **_errors([(layer.name, layer.relative) for layer in report.layers]),
    }
    return found | (_divergence(report.divergence) if report.divergence else {})


def _errors(layers: list[tuple[str, float]]) -> dict[str, Any]:
    if not layers:
        return {}
    worst = max(layers, key=lambda layer: layer[1])
    return {
        "error": sum(relative for _, relative in layers) / len(layers),
        "worst_error": worst[1],
        "worst_layer": worst[0],
    }


def _divergence(found: Divergence) -> dict[str, Any]:
    if not math.isfinite(found.nats):  # the source itself gives no numbers on this text
        return {}
    return {"kl": found.nats, "same_first": found.same_first, "kl_tokens": found.tokens}


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
