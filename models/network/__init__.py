"""The four graphs as torch modules: front ends, encoders, fusion."""
