"""What lets a run survive faults, stops and changes."""
