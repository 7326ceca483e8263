"""Making a quantized directory from a full-precision one: block by block, resumable, published whole or not at all.

All work lies in one hidden directory beside the target, keyed by everything that decides the result:

    key.json            what is being made, and of what
    lock                held while somebody works here; the system lets go of it when its process ends
    inputs-N.bin        the activations that reach block N, for the next block and for going on after a kill
    block-N.safetensors the tensors of block N, renamed into place when they are on the disk
    done/               the directory that will be published, put together and verified at the end

Only `os.replace` of done/ makes the target appear, and it holds everything by then.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qlangchain.artifacts.atomic import read_json, sync_directory, write_json
from qlangchain.artifacts.locks import hold
from qlangchain.errors import CancelledError, DiskFullError, InvalidInputError, ProductionError
from qlangchain.produce import calibration, requirements
from qlangchain.produce.blocks import Activations, Block
from qlangchain.produce.decoders import Decoder, check_sizes, require_torch
from qlangchain.produce.layout import block_file, write_block, write_directory
from qlangchain.produce.verify import Report, verify_directory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qlangchain.produce.packing import QuantizedLinear

VERSION = 1  # to be raised by one whenever the same source would give other weights

Progress = Callable[[str, int, int], None]
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Recipe(Protocol):
    """A method with its settings."""

    @property
    def bits(self) -> int:
        """The width of a code."""
        ...

    @property
    def group_size(self) -> int:
        """Inputs that share a scale; -1 is all of a layer."""
        ...

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """The group sizes that readers of the format know."""
        ...

    def config(self) -> dict[str, Any]:
        """The `quantization_config` that describes the result."""
        ...

    def encode(self, layer: QuantizedLinear) -> dict[str, Any]:
        """The tensors of a layer on disk."""
        ...

    def quantize(
        self, block: Block, outputs: Activations, done: Callable[[], None]
    ) -> tuple[dict[str, QuantizedLinear], dict[str, Tensor]]:
        """Quantize a block; see `GptqRecipe.quantize`."""
        ...


def produce_directory(
    source: Path,
    target: Path,
    recipe: Recipe,
    *,
    texts: Sequence[str] | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    work: Path | None = None,
    shard_bytes: int = 5_000_000_000,
) -> tuple[Path, Report]:
    """Quantize the model directory `source` into the new directory `target`; return it and what its check found.

    Args:
        source: config.json, safetensors and tokenizer of a full-precision model.
        target: the directory to make; it must not exist, or be empty.
        recipe: the method with its settings.
        texts: what to calibrate on; None is the text that ships with the project.
        samples: how many samples are cut from the texts; None takes what is there, at most 128.
        sequence_length: tokens of a sample; None is 512, or the model's context where that is shorter.
        progress: called with a stage ("quantize" in steps, "write" in bytes, "compare" and "verify" in layers), what
            is done of it and what there is.
        cancel: set it to end the work; what is finished is kept for the next call.
        work: where to work; None is a hidden directory beside the target. Another place must be on the same disk.
        shard_bytes: the most that one safetensors file holds.

    Raises:
        InvalidInputError: settings that do not fit the model, too little text, a target that holds something.
        UnsupportedModelError: an unknown architecture, or a model that is quantized already.
        UnsafeWeightsError: pickled weights, or a model with code of its own.
        NoWeightsError, ModelNotFoundError, CorruptFileError: there is nothing usable in `source`.
        MissingDependencyError: torch is not installed.
        DiskFullError: not enough disk, asked before and met while writing.
        StoreLockedError: another process makes the same target.
        CancelledError: `cancel` was set.
        ProductionError: not enough memory, or the result did not pass its check; nothing was published.

    """
    source, target = Path(source), Path(target).absolute()
    _refuse_target(target)
    calibration.check_counts(samples, sequence_length)
    require_torch()
    decoder = Decoder(source)
    check_sizes(decoder.linear_shapes(), recipe.bits, recipe.group_size, recipe.group_sizes)
    context = int(getattr(decoder.model.config, "max_position_embeddings", calibration.LENGTH))
    length = min(calibration.LENGTH, context) if sequence_length is None else sequence_length
    if length > context:
        raise InvalidInputError(
            f"A sequence length of {length} is beyond the {context} tokens that the model was made for.",
            hint="Pass a shorter one.",
        )
    tokenizer = calibration.load_tokenizer(source)
    tokens = calibration.samples_of(tokenizer, calibration.default_texts() if texts is None else texts, samples, length)
    room = work or target.with_name(f".{target.name}.quantizing")
    with _mapped_errors(target), hold(room, "work", what=f"making {target.name}", timeout=1.0):
        _claim(room, _key(decoder, recipe, tokens))
        run = _Run(decoder, recipe, room, tokens, progress, cancel)
        needs = requirements.estimate(decoder, recipe.bits, recipe.group_size, tokens.shape, run.dtype)
        requirements.check(decoder, needs, room)
        run.blocks()
        done = room / "done"
        write_directory(decoder, recipe.config(), room, done, shard_bytes, run.write_progress)
        report = verify_directory(done, source, progress=progress, cancel=cancel)
        if not report.is_sound:
            shutil.rmtree(room, ignore_errors=True)  # a second try from the same blocks would fail the same way
            raise ProductionError(
                f"What was made does not pass its check, so it was not published: {'; '.join(report.problems[:3])}",
                hint="More calibration text or a smaller group size may help; or choose GGUF for this model.",
            )
        _publish(done, target)
    shutil.rmtree(room, ignore_errors=True)
    return target, report


class _Run:
    """The quantization of all blocks, in order, from wherever an earlier call has come to."""

    def __init__(
        self,
        decoder: Decoder,
        recipe: Recipe,
        room: Path,
        tokens: Tensor,
        progress: Progress | None,
        cancel: threading.Event | None,
    ) -> None:
        self.decoder, self.recipe, self.room, self.tokens = decoder, recipe, room, tokens
        self.progress, self.cancel = progress, cancel
        self.dtype: torch.dtype = decoder.compute_dtype()

    def check(self) -> None:
        """Raise `CancelledError` where the user has cancelled."""
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError("Quantizing was cancelled; the finished blocks are kept.")

    def write_progress(self, done: int, total: int) -> None:
        """Pass on the bytes written, and see whether to go on."""
        self.check()
        if self.progress:
            self.progress("write", done, total)

    def inputs(self, index: int) -> Activations:
        """The activations that reach a block."""
        samples, length = self.tokens.shape
        return Activations(self.room / f"inputs-{index}.bin", (samples, length, self.decoder.hidden_size), self.dtype)

    def finished(self) -> int:
        """How many blocks are finished, with the inputs of the next one at hand."""
        count = 0
        while block_file(self.room, count).is_file() and count < self.decoder.layers:
            count += 1
        if count == self.decoder.layers or (count and self.inputs(count).is_complete()):
            return count
        return 0

    def blocks(self) -> None:
        """Quantize what is not finished yet."""
        steps = len(self.decoder.architecture.steps)
        first = self.finished()
        if first == self.decoder.layers:
            return
        start, arguments = self.decoder.start(self.tokens if first == 0 else self.tokens[:1], self.dtype)
        if first == 0:
            self.inputs(0).write(start)
        for index in range(first, self.decoder.layers):
            place = index * steps

            def done() -> None:
                nonlocal place
                place += 1
                self.check()
                if self.progress:
                    self.progress("quantize", place, self.decoder.layers * steps)

            self.check()
            self._block(index, arguments[index], done)

    def _block(self, index: int, arguments: dict[str, Any], done: Callable[[], None]) -> None:
        block = Block(self.decoder, index, self.inputs(index), arguments, self.check)
        layers, others = self.recipe.quantize(block, self.inputs(index + 1), done)
        write_block(self.room, self.decoder, index, layers, others, self.recipe.encode)
        self.inputs(index).path.unlink(missing_ok=True)


def _refuse_target(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInputError(
            f"{target} exists already.", hint="Remove it, or choose another directory: nothing is overwritten."
        )


def _key(decoder: Decoder, recipe: Recipe, tokens: Tensor) -> str:
    """Name the work by everything that decides its result."""
    about = hashlib.sha256(f"{VERSION} {recipe!r} {decoder.compute_dtype()}".encode())
    about.update(json.dumps(decoder.raw, sort_keys=True).encode())
    about.update(str(tuple(tokens.shape)).encode() + tokens.numpy().tobytes())
    for path in sorted(set(decoder.checkpoint.files.values())):
        stat = path.stat()
        about.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}".encode())
    return about.hexdigest()


def _claim(room: Path, key: str) -> None:
    """Clear away the work of another recipe, text or source, and what was being put together."""
    same = read_json(room / "key.json").get("key") == key
    for path in room.iterdir():
        if path.name.startswith("work."):  # the lock
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif not same or path.suffix == ".part":
            path.unlink()
    if not same:
        write_json(room / "key.json", {"key": key})


def _publish(done: Path, target: Path) -> None:
    for path in done.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_directory(done)
    if target.is_dir():
        target.rmdir()  # empty, as was asked before
    os.replace(done, target)
    sync_directory(target.parent)


@contextlib.contextmanager
def _mapped_errors(target: Path) -> Iterator[None]:
    """Turn what the system and torch say about a full disk or memory into our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"The disk of {target} is full; nothing was published.",
                hint="Free some disk and call again: it goes on at the last finished block.",
            ) from error
        raise ProductionError(f"{target} could not be made: {error}.", hint="Nothing was published.") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise ProductionError(
                "The memory ran out; nothing was published.",
                hint="Close other programs or pass a shorter sequence length, and call again: it goes on at the last "
                "finished block.",
            ) from error
        raise
