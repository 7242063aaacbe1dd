"""HTML reports of evaluations and of training runs."""
