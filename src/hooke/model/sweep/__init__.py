"""Sweeps: many edit sets over the same inputs, planned together.

`sweep.py` is the way in; `planning.py` checks and costs, `worker.py` runs the plan, `saved.py` resumes it. `rows.py`
says where each row leaves the clean run (`clean.py`). `packed.py` computes only what differs: `packing.py` lays the
rows side by side, `portion.py` says what a block computes of them, `attending.py` spreads them out for attention,
`changing.py` applies their edits; `tail.py` gives the logits that are read. `layered.py` and `batched.py` are the ways
for the rest.
"""
