"""The ergodic linear-quadratic problem of Jia and Zhou (2022b): average reward, on- and off-policy, and small steps."""
