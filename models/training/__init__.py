"""How they learn: the loop, what is learned from, and how each encoder is taught."""
