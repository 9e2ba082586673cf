"""Measures the service against what the machine could do at best: `make bench`."""
