"""The toy transformer: small models with switches, trained from scratch or built by hand.

`config.py` says what can be switched, `network.py` is the Hugging Face module, `make.py` a model from a seed.
"""
