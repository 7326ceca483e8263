"""The LangChain face, and the only room that imports langchain_core."""
