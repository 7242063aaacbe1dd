"""Methods: network, objective, scores and cost of each."""
