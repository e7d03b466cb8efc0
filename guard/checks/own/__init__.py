"""Makers of what a policy looks for itself: one module a kind or two, found by the `ringfence.kinds` entry points."""
