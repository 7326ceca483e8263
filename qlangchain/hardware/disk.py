"""The room on the disk where artifacts are kept."""

from __future__ import annotations

import shutil
from pathlib import Path


def free(directory: Path) -> tuple[int | None, str]:
    """Return the bytes that this user may still write below `directory`, None where not known, and the source.

    The directory need not exist yet: the nearest parent that does lies on the same disk.
    """
    for place in (directory, *directory.parents):
        try:
            return shutil.disk_usage(place).free, "free space of the disk of QLANGCHAIN_HOME"
        except FileNotFoundError:
            continue
        except OSError as error:
            return None, f"not known: the disk cannot be asked ({type(error).__name__})"
    return None, "not known: QLANGCHAIN_HOME is on no disk"
