"""The names of langchain-community and llama-cpp-python, on qlangchain's engines: change the import, keep the code.

`LlamaCpp`, `ChatLlamaCpp`, `LlamaCppEmbeddings` and `VLLM` take the arguments of langchain-community's classes of
the same names, and `Llama` those of llama-cpp-python's. Every argument is honoured, translated, announced where it
changes nothing here, or refused where ignoring it would change answers; `tables.py` says which.
"""

from __future__ import annotations

from qlangchain.compat.llama import Llama
from qlangchain.compat.llama_cpp import ChatLlamaCpp, LlamaCpp, LlamaCppEmbeddings
from qlangchain.compat.vllm import VLLM

__all__ = ["VLLM", "ChatLlamaCpp", "Llama", "LlamaCpp", "LlamaCppEmbeddings"]
