"""The memory of what was judged: records, their store, and the proof that nobody changed them."""
