"""Adapters and harnesses broken on purpose, each with the check that must catch it.

A suite that lets one of them pass is broken, whatever else is green. `adapters` breaks what a plugin could get wrong,
`once` what the library's inbox could, `harness` what this suite could. `catalogue` lists them all, with where, by which
check and for what reason each must be caught.
"""

from brokerkit_conformance.mutants.catalogue import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant"]
