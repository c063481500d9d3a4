"""What the server counts of itself."""
