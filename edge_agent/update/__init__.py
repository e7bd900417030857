"""Model updates: fetch what is signed, prove it on this device, swap, and be able to go back without a network."""
