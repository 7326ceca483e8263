"""Grammars by llguidance: at each step only the tokens that can still become a text of the grammar."""

from __future__ import annotations

from typing import Any


class Constraints:
    """The grammar engine for one tokenizer; building its token table takes a moment, so it is built once."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """`vocabulary` is the number of logits, which is often larger than the tokenizer's."""
        import llguidance.hf

        self._tokens = llguidance.hf.from_tokenizer(tokenizer, max(vocabulary, len(tokenizer)))

    def processor(self, grammar: str) -> Any:
        """Return a logits processor that holds one generation to `grammar`.

        Raises ValueError where llguidance does not understand the grammar.
        """
        import llguidance

        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"the grammar cannot be used: {matcher.get_error()}")
        return _Processor(matcher, self._tokens)


class _Processor:
    def __init__(self, matcher: Any, tokens: Any) -> None:
        self._matcher, self._tokens = matcher, tokens
        self._seen: int | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import numpy as np
        import torch

        length = int(input_ids.shape[1])
        if self._seen is not None and length > self._seen:
            self._matcher.consume_tokens(input_ids[0, self._seen :].tolist())
        self._seen = length
        if self._matcher.is_stopped():
            allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
            allowed[self._tokens.eos_token] = True
        else:
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            bits = np.unpackbits(packed, bitorder="little")[: scores.shape[-1]]
            allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
            allowed[: len(bits)] = torch.from_numpy(bits.astype(bool))
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))
