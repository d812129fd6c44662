"""Components: what single heads and neurons do."""
