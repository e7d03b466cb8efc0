"""Other people's guards: one small module a family says how it is asked and read; who asks knows no family."""
