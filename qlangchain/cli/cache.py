"""`qlangchain cache`: what the store holds, whether it is whole, and how to make room or carry it elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from qlangchain import settings
from qlangchain.artifacts.housekeeping import Swept, matching
from qlangchain.artifacts.manifest import Manifest
from qlangchain.artifacts.store import Store, Stored
from qlangchain.cli.options import Json
from qlangchain.cli.output import console, print_json, production_bar, size
from qlangchain.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True, help="What the store holds: list, verify, remove, export, import.")

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Ids as `ls` shows them (or their beginning), org/name, or org/name:FORMAT."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")]


@app.command("ls")
def ls(json: Json = False) -> None:
    """List the artifacts in the store, the newest first."""
    store = _store()
    found = store.list()
    blobs = {file.sha256: file.size_bytes for stored in found for file in stored.manifest.files}
    if json:
        rows = [_row(stored.manifest) | {"path": str(stored.path)} for stored in found]
        print_json({"store": str(store.root), "size": sum(blobs.values()), "artifacts": rows})
        return
    for stored in found:
        _line(stored.manifest)
    shared = " on disk, files that several need once" if sum(s.size_bytes for s in found) > sum(blobs.values()) else ""
    console.out(f"{_count(found)} in {store.root}: {size(sum(blobs.values()))}{shared}")


@app.command("verify")
def verify(names: Names = None, json: Json = False) -> None:
    """Read every byte again and compare it with its digest. Exit code 1 where something has changed or is missing."""
    store = _store()
    ids = [manifest.id for manifest in matching(store, names)] if names else None
    checked = store.verify(ids)
    damaged = [check for check in checked if check.state != "ok"]
    if json:
        print_json({"whole": not damaged, "files": [asdict(check) for check in checked]})
    else:
        for check in damaged:
            console.out(f"{check.state}: {check.name} of {check.id[:12] or 'no artifact'}")
        counted = "1 file" if len(checked) == 1 else f"{len(checked)} files"
        counted += f", {size(sum(check.size_bytes for check in checked))}"
        console.out(f"{counted}: {len(damaged)} damaged" if damaged else f"{counted}: whole")
        if damaged:
            console.out("What has changed is in quarantine; asking for the model again fetches or makes it anew.")
    raise typer.Exit(1 if damaged else 0)


@app.command("rm")
def rm(names: Names = None, yes: Yes = False, dry_run: DryRun = False, json: Json = False) -> None:
    """Remove artifacts. Files that another artifact needs stay."""
    store = _store()
    chosen = matching(store, names or _nothing())
    if not json:
        for manifest in chosen:
            _line(manifest)
    if not dry_run:
        _ask(f"Remove {_count(chosen)}?", yes=yes, json=json)
    _report(store, store.remove([manifest.id for manifest in chosen], dry_run=dry_run), dry_run=dry_run, json=json)


@app.command("gc")
def gc(
    yes: Yes = False,
    dry_run: DryRun = False,
    older_than: Annotated[
        float, typer.Option(help="Hours; what is younger may belong to work under way.", min=0)
    ] = 24.0,
    json: Json = False,
) -> None:
    """Remove what nothing refers to: unfinished work, unreferenced files, quarantine, stale notes and locks."""
    store = _store()
    if not dry_run and not yes:
        planned = store.gc(dry_run=True, older_than=older_than * 3600)
        if planned:
            _ask(f"Remove {_freed(planned)}?", yes=yes, json=json)
    _report(store, store.gc(dry_run=dry_run, older_than=older_than * 3600), dry_run=dry_run, json=json)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="The bundle to write, such as models.tar.")],
    names: Names = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    json: Json = False,
) -> None:
    """Write artifacts into one file for a machine without a network."""
    from qlangchain.artifacts.bundle import export_bundle

    store = _store()
    ids = [manifest.id for manifest in matching(store, names or _nothing())]
    with production_bar("exporting", show=not json) as progress:
        done = export_bundle(store, ids, file, overwrite=force, progress=progress)
    _done(done, json=json, bundle=str(file), size=file.stat().st_size)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A bundle that `qlangchain cache export` wrote.")], json: Json = False
) -> None:
    """Take the artifacts of a bundle into the store; every digest is checked before anything is used."""
    from qlangchain.artifacts.bundle import import_bundle

    with production_bar("importing", show=not json) as progress:
        done = import_bundle(_store(), file, progress=progress)
    _done(done, json=json, bundle=str(file), size=sum(stored.size_bytes for stored in done))


def _store() -> Store:
    return Store(settings.read().store)


def _nothing() -> list[str]:
    raise InvalidInputError("No artifact is named.", hint="`qlangchain cache ls` lists them; an id may be shortened.")


def _ask(question: str, *, yes: bool, json: bool) -> None:
    if yes:
        return
    if json:
        raise InvalidInputError("--json does not ask.", hint="Pass --yes as well, or --dry-run.")
    typer.confirm(question, abort=True)


def _row(manifest: Manifest) -> dict[str, Any]:
    return manifest.to_dict() | {"size": manifest.size_bytes}


def _line(manifest: Manifest) -> None:
    what = " ".join(filter(None, (manifest.method, manifest.format if manifest.format != manifest.method else None)))
    name = manifest.repo or manifest.model or "unnamed"
    at = f"@{manifest.commit[:8]}" if manifest.commit else ""
    console.out(
        f"{manifest.id[:12]}  {size(manifest.size_bytes):>10}  {what:<12} {name}{at}, {manifest.kind.value} "
        f"{manifest.created[:10]}"
    )


def _count(chosen: Sequence[object]) -> str:
    return "1 artifact" if len(chosen) == 1 else f"{len(chosen)} artifacts"


def _freed(swept: Sequence[Swept]) -> str:
    return f"{len(swept)} entries, {size(sum(entry.size_bytes for entry in swept))}"


def _report(store: Store, swept: Sequence[Swept], *, dry_run: bool, json: bool) -> None:
    if json:
        rows = [{"kind": entry.kind, "path": str(entry.path), "size": entry.size_bytes} for entry in swept]
        print_json({"dry_run": dry_run, "size": sum(entry.size_bytes for entry in swept), "removed": rows})
        return
    for entry in swept:
        if dry_run or entry.size_bytes:
            console.out(f"{entry.kind:<10}  {size(entry.size_bytes):>10}  {entry.path.relative_to(store.root)}")
    console.out(f"{'Would remove' if dry_run else 'Removed'} {_freed(swept)}.")


def _done(stored: Sequence[Stored], *, json: bool, **more: Any) -> None:
    if json:
        print_json({**more, "artifacts": [_row(entry.manifest) for entry in stored]})
        return
    for entry in stored:
        _line(entry.manifest)
    console.out(f"{more['bundle']}: {size(more['size'])}")
