"""Measures the service from outside: `make bench`."""
