"""Fuzzers: damaged and malicious inputs, a kind a file; ``harness`` runs them, ``watch`` sees what they do."""
