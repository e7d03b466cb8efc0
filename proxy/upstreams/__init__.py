"""Where an exchange is answered: one small module an upstream, found by entry point."""
