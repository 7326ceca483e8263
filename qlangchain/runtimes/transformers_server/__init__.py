"""A small server for models that only transformers can run: one program, in an environment of its own if need be.

`transformers serve` has no key, ignores schemas and forced tools in silence and generates past the context. This one
speaks the part of llama.cpp's protocol that our client uses, so that counting, refusing and constraining work alike.
It is run with `python -m`, never imported by the program that it serves.
"""
