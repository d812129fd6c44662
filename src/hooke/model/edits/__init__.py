"""Edits: frozen descriptions of a change at a site and positions, one file for each family of kinds.

An edit is data. It can be kept, shown, batched and planned, and it is checked against the model before anything runs.
Edits of one run are applied in the order given; what later layers see, and what a capture of the same site returns,
is the edited value. Gradients flow through every edit, to the model's activations and to the edit's own tensors.

Positions: None (everywhere, generated tokens included), an int or a sequence of ints (in terms of each row's own
tokens, negative from the end), "last" (the last prompt token), "prompt", "generated", "kept" (the one mask: no
padding, no special tokens; generated tokens count as kept), "image" (placeholders of image features), a name that the
tokens carry (`Tokens.names`), a Bool tensor [batch, pos], or "each" (for sweeps: `expand_each` makes one edit set of it
for each position).
"""

from __future__ import annotations

from hooke.model.edits.ablate import Ablate
from hooke.model.edits.arithmetic import Add, Project, Scale, Set
from hooke.model.edits.call import Call
from hooke.model.edits.each import expand_each
from hooke.model.edits.edit import Edit, Place, Positions
from hooke.model.edits.freeze import Freeze
from hooke.model.edits.mask import Mask
from hooke.model.edits.splice import Reconstructs, Splice

KINDS: dict[str, type[Edit]] = {
    kind.__name__: kind for kind in (Set, Add, Scale, Project, Ablate, Splice, Freeze, Mask, Call)
}

__all__ = [
    "KINDS",
    "Ablate",
    "Add",
    "Call",
    "Edit",
    "Freeze",
    "Mask",
    "Place",
    "Positions",
    "Project",
    "Reconstructs",
    "Scale",
    "Set",
    "Splice",
    "expand_each",
]
