"""Generation under edits: text that goes on, and the log-probability of text that is given.

`cached.py` is one run with a KV cache, which `generate.py` and `continuations.py` share; `sampling.py` chooses tokens,
`growing.py` turns them into text as it grows.
"""
