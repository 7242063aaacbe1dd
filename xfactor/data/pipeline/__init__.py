"""The input pipeline: from records to batches."""
