"""Engines: server processes that speak the OpenAI HTTP protocol, and the one client for all of them.

Nothing in this room knows LangChain.
"""
