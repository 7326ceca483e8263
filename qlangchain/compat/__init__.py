"""The names of langchain-community, llama-cpp-python and vLLM on our engines: change the import, keep the code.

`LlamaCpp`, `ChatLlamaCpp`, `LlamaCppEmbeddings` and `VLLM` take the arguments of langchain-community's classes of
the same names, `Llama` those of llama-cpp-python's, `LLM` and `SamplingParams` those of vLLM's. Every argument is
honoured, translated, announced where it changes nothing here, or refused where ignoring it would change answers;
`tables.py` says which.
"""

from __future__ import annotations

from qlangchain.compat.llama import Llama
from qlangchain.compat.llama_cpp import ChatLlamaCpp, LlamaCpp, LlamaCppEmbeddings
from qlangchain.compat.vllm import VLLM
from qlangchain.compat.vllm_engine import LLM, SamplingParams

__all__ = ["LLM", "VLLM", "ChatLlamaCpp", "Llama", "LlamaCpp", "LlamaCppEmbeddings", "SamplingParams"]
