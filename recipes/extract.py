"""Turn many texts into records of one schema, as CSV and JSON. Every record is valid, or it is no record.

    python recipes/extract.py LETTERS/*.txt --out people
    python recipes/extract.py notes.txt --lines --schema person.schema.json --out people
    python recipes/extract.py notes.txt --lines --schema mymodule:Invoice --out invoices

The engine's grammar allows nothing but the schema. Give numbers a smallest and a largest value where they have one:
then the grammar knows them too. A text that gives no record is reported with its reason, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from qlangchain import ChatQuantized, get_chat_model
from qlangchain.errors import InvalidInputError, QlangchainError

Schema = type[BaseModel] | dict[str, Any]
Record = dict[str, Any]


class Person(BaseModel):
    """Information about a person."""

    name: str
    age: int = Field(ge=0, le=120)


def extract(
    texts: Mapping[str, str], model: ChatQuantized, schema: Schema = Person
) -> tuple[dict[str, Record], dict[str, Exception]]:
    """Return the records, and what went wrong with the other texts, both under the names of the texts.

    Args:
        texts: the texts by name; all are in the engine at once.
        model: a chat model; temperature=0 gives the same records every time.
        schema: a pydantic class or a JSON schema of an object.

    """
    described = schema if isinstance(schema, type) else json_schema(schema)
    chain = model.with_structured_output(described, method="function_calling")
    results: list[Any] = chain.batch(list(texts.values()), return_exceptions=True)  # one must not cost the others
    found = {
        name: r.model_dump(mode="json") if isinstance(r, BaseModel) else r
        for name, r in zip(texts, results, strict=True)
    }
    failures = {name: record for name, record in found.items() if isinstance(record, Exception)}
    return {name: record for name, record in found.items() if name not in failures}, failures


def json_schema(schema: Schema) -> dict[str, Any]:
    """Return the JSON schema of a pydantic class, or the schema itself with the title that a tool needs."""
    return {"title": "Record", **schema} if isinstance(schema, dict) else schema.model_json_schema()


def load_schema(name: str) -> Schema:
    """Load a JSON schema from a file, or a pydantic class from "module:Class"."""
    if name.endswith(".json"):
        schema = json.loads(Path(name).read_text("utf-8"))
        if not (isinstance(schema, dict) and isinstance(schema.get("properties"), dict)):
            raise InvalidInputError(f"{name} is no schema of an object.", hint='It needs "properties".')
        return json_schema(schema)
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise InvalidInputError(f"{name} is no pydantic class.", hint='Name it as "module:Class".')
    return found


def save(records: Mapping[str, Record], schema: Schema, target: Path) -> None:
    """Write TARGET.json and TARGET.csv, where lists and objects stand as JSON."""
    rows = [{"source": name, **record} for name, record in records.items()]
    target.with_suffix(".json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", "utf-8")
    with target.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["source", *json_schema(schema)["properties"]])
        table.writeheader()
        for row in rows:
            cells = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, (list, dict)) else v for k, v in row.items()}
            table.writerow(cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the texts, extract, and write both files."""
    parser = argparse.ArgumentParser(description="Turn texts into records of one schema, as CSV and JSON.")
    parser.add_argument("files", nargs="+", type=Path, help="text files in UTF-8")
    parser.add_argument("--lines", action="store_true", help="each line is a text of its own")
    parser.add_argument("--schema", help="FILE.json or module:Class (default: name and age of a person)")
    parser.add_argument("--model", default="demo", help="name or path of the model (default: demo)")
    parser.add_argument("--out", type=Path, default=Path("records"), help="where to write, without .json and .csv")
    options = parser.parse_args(arguments)
    try:
        texts = {str(path): path.read_text("utf-8") for path in options.files}
        if options.lines:
            texts = {f"{n}:{i}": x for n, t in texts.items() for i, x in enumerate(t.splitlines(), 1) if x.strip()}
        schema = load_schema(options.schema) if options.schema else Person
        records, failures = extract(texts, get_chat_model(options.model, temperature=0, max_tokens=512), schema)
        save(records, schema, options.out)
    except (QlangchainError, OSError, ValueError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"{len(records)} records from {len(texts)} texts: {options.out}.json, {options.out}.csv")
    for name, failure in failures.items():
        print(f"{name} gave no record: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
