"""The embedded engine. Token ids in, token ids out; knows nothing of safety or HTTP."""
