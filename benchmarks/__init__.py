"""Speed and memory: one file per question, asked of the machine at hand. `python -m benchmarks`; see README.md."""
