"""Training: recipes that make models."""
