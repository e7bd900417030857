"""The whole system on one machine, for people who want to see it first: `make demo`."""
