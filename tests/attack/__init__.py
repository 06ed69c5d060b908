"""Attacks on a real cluster, measured from a good client's side: `python -m tests.attack`."""
