"""Data: corpora, packed batches, harvest, store and pool."""
