"""Environments of their own for tools that are heavy, or whose pins contradict ours or each other's."""
