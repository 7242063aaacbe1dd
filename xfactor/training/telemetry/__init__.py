"""What a run tells people: logs, curves, goodput, profiles."""
