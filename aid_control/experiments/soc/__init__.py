"""Stochastic optimal control benchmarks of the SOC-matching and deep-BSDE papers, against exact controls."""
