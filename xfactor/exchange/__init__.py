"""Other code bases' checkpoints, read and written."""
