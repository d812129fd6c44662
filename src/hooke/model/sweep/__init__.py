"""Sweeps: many edit sets over the same inputs, planned together.

`sweep.py` plans and runs; `rows.py` says where each row leaves the clean run, `clean.py` records that run, `packed.py`
computes only what differs from it, `tail.py` the logits that are read, and `batched.py` is the plain way for the rest.
"""
