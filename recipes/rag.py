"""Answer questions about a folder of text, Markdown and PDF files, with citations, all on this machine.

    python recipes/rag.py DOCUMENTS "Where does Emma live?"

Chunks are kept in a Qdrant database in a folder (open only your own: it holds pickles), and embedded again only where
a file's content has changed. They are found by meaning and, since names and numbers mean little to an embedding
model, by their words too. An answer that no chunk supports is not given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pypdf import PdfReader
from qdrant_client import QdrantClient, models

from qlangchain import QuantizedEmbeddings, get_chat_model, get_embeddings
from qlangchain.chains import answer_from, words
from qlangchain.errors import QlangchainError

NAME, KINDS, CHUNK, OVERLAP = "chunks", (".txt", ".md", ".pdf"), 600, 100  # lengths in characters


class _Words(SparseEmbeddings):
    def embed_query(self, text: str) -> SparseVector:
        counts = Counter(zlib.crc32(word.encode()) for word in words(text))
        return SparseVector(indices=list(counts), values=[2.2 * n / (n + 1.2) for n in counts.values()])

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        return [self.embed_query(text) for text in texts]


class Index:
    """The chunks of a folder's files, in a database at `path` that one process at a time may have open."""

    def __init__(self, path: Path, embeddings: QuantizedEmbeddings) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.client = QdrantClient(path=str(path / "qdrant"), force_disable_check_same_thread=True)
        # Another embedding model gives this sentence another vector, and then the old ones are worth nothing.
        self.probe = [CHUNK, OVERLAP, *embeddings.embed_query("A sentence that tells one model from another.")]
        self.manifest = path / "index.json"  # the probe, and the SHA-256 of each file in the database
        known = json.loads(self.manifest.read_text())["probe"] if self.manifest.exists() else []
        same = len(known) == len(self.probe) and math.dist(known, self.probe) < 0.05
        if not (same and self.client.collection_exists(NAME)):
            self.manifest.unlink(missing_ok=True)
            self.client.delete_collection(NAME)
            meaning = models.VectorParams(size=len(self.probe) - 2, distance=models.Distance.COSINE)
            rarity = models.SparseVectorParams(modifier=models.Modifier.IDF)  # words in few chunks weigh more
            self.client.create_collection(NAME, meaning, {"words": rarity})
        self.store = QdrantVectorStore(
            self.client, NAME, embeddings, RetrievalMode.HYBRID, sparse_embedding=_Words(), sparse_vector_name="words"
        )

    def update(self, folder: Path) -> list[str]:
        """Embed the files that are new or changed, forget those that are gone, and return the names of both."""
        there = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in KINDS and path.is_file()]
        if not there:
            raise FileNotFoundError(f"{folder} holds no {', '.join(KINDS)} file.")
        found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in there}
        known = json.loads(self.manifest.read_text())["files"] if self.manifest.exists() else {}
        changed = sorted(name for name in {*found, *known} if found.get(name) != known.get(name))
        half_done = {**found, **dict.fromkeys(changed, "")}  # whatever ends this early, they are done again
        self.manifest.write_text(json.dumps({"probe": self.probe, "files": half_done}))
        for name in changed:
            same_file = models.FieldCondition(key="metadata.source", match=models.MatchValue(value=name))
            self.client.delete(NAME, models.Filter(must=[same_file]))
            self.store.add_documents(list(chunks_of(folder / name, name)) if name in found else [])
        self.manifest.write_text(json.dumps({"probe": self.probe, "files": found}))
        return changed


def chunks_of(path: Path, name: str) -> Iterable[Document]:
    """Cut a file into chunks, numbered from 1. One that cannot be read gives none, and a line on stderr."""
    is_pdf = path.suffix.lower() == ".pdf"
    try:
        pages = [page.extract_text() for page in PdfReader(path).pages] if is_pdf else [path.read_text("utf-8")]
    except Exception as error:  # damaged PDFs raise errors of every kind, and one file must not stop the others
        print(f"{name} is left out: {error}", file=sys.stderr)
        return
    splitter = RecursiveCharacterTextSplitter(chunk_size=CHUNK, chunk_overlap=OVERLAP)
    for number, text in enumerate([chunk for page in pages for chunk in splitter.split_text(page)], 1):
        yield Document(text, metadata={"source": name, "chunk": number})


def main(arguments: Sequence[str] | None = None) -> None:
    """Index the folder, answer, and print where each answer stands."""
    parser = argparse.ArgumentParser(description="Answer questions about a folder of documents, with citations.")
    parser.add_argument("documents", type=Path, help="folder of .txt, .md and .pdf files")
    parser.add_argument("questions", nargs="+", help="each in quotes")
    parser.add_argument("--model", default="demo", help="the model that answers (default: demo)")
    parser.add_argument("--embeddings", default="demo", help="the embedding model (default: demo)")
    parser.add_argument("--index", type=Path, help="folder of the database (default: .index in the documents)")
    options = parser.parse_args(arguments)
    try:
        index = Index(options.index or options.documents / ".index", get_embeddings(options.embeddings))
        print(f"Updated: {', '.join(index.update(options.documents)) or 'nothing'}")
        model = get_chat_model(options.model, temperature=0)
        retriever = index.store.as_retriever(search_kwargs={"k": 4})
        chain = answer_from(retriever, model, context_length=model.plan.context_length if model.plan else None)
        for question, answer in zip(options.questions, chain.batch(options.questions), strict=True):
            print(f"\n{question}\n{answer.text}", *(f"[{c.source}, chunk {c.chunk}]" for c in answer.citations))
        index.client.close()
    except (QlangchainError, OSError, RuntimeError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
