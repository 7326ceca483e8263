"""Choosing, as pure functions: facts in, a `Plan` with its reasons out. No I/O, no clock, no LangChain."""
