"""Induces failures against a real broker and holds its claims against what was seen."""
