"""Published experiments of the field, each from one configuration: settings, truth, learners, and what they reach.

The layer above `lq` and `images`: it may use both, nothing below knows it.
"""
