"""The language between device and cloud. It imports msgspec and zstandard, nothing else."""
