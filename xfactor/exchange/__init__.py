"""Reads and writes the checkpoints of other code bases."""
