"""Inpainting methods: one a file, all called like `task.Method`; `registry` knows them by name."""
