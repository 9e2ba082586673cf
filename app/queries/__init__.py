"""The statements: one function, one statement."""
