"""Undoes disguises: a text in the clear, with the place of everything in the text as it came."""
