"""Readers of the recorded sets, generators of simulated parts, and the composition of episodes from both."""
