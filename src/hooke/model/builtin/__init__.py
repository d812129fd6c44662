"""Models that ship with hooke, each a folder in the Hugging Face layout with its card."""
