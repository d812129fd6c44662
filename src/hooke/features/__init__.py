"""Look at latents: an index of where they fire, examples, what they write, their relatives, and search."""
