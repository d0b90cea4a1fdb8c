"""Fast tensor operations, each with a plain reference beside it."""
