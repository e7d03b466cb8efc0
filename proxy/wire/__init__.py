"""The APIs that callers and upstreams speak, one module each, to and from an exchange and the events of its reply."""
