"""The sides of `benchmarks/access.py`: shapes, plain Hugging Face, hand-written floors, hooke, and the peers."""
