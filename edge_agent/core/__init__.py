"""The pure core: samples in, events out. No clock, thread, socket or file of its own."""
