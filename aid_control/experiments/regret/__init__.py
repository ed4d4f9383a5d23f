"""Sublinear regret of model-free learning in linear-quadratic control with control-dependent noise."""
