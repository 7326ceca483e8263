"""Turn texts into vectors and find the nearest. The demo model was not trained for it: take an embedding model."""

from qlangchain import get_embeddings

texts = ["GPTQ quantizes weights to four bits.", "A kettle boils water.", "AWQ keeps salient weights exact."]
embeddings = get_embeddings("demo", hardware="cpu")

vectors = embeddings.embed_documents(texts)
query = embeddings.embed_query("Which methods quantize weights?")
print(len(vectors), "vectors of", len(query), "numbers, each of length 1")


def similarity(vector: list[float]) -> float:
    return sum(a * b for a, b in zip(query, vector, strict=True))


for text, vector in sorted(zip(texts, vectors, strict=True), key=lambda pair: -similarity(pair[1])):
    print(f"{similarity(vector):.3f} {text}")
