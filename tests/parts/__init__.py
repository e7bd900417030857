"""Real parts that tests and benchmarks start: a broker, a stream, a sound server, a bundle."""
