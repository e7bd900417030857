"""Readers of recorded sets, generators of simulated parts, and the composition of episodes from both."""
