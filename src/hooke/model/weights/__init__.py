"""Weights: a model's matrices under the names of the field, raw and folded, and the circuits that they make.

`views.py` reads them, under the `names.py` of the field, at the `places.py` that a layout knows; `factored.py` is the
algebra of low-rank products, `composition.py` what heads do to each other, `folding.py` the standard rewrites.
"""
