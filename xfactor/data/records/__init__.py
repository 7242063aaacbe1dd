"""The record format: frames and clips as TFDS array_record data sets."""
