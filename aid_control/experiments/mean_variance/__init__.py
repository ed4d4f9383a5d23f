"""Mean-variance portfolios and asset-liability management learned from simulated wealth alone."""
