"""Model access: load, sites, capture, edits, run, generate."""
