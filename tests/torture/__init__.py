"""Long tests of damage: `python -m tests.torture.NAME`; what they found stands in README.md beside this file."""
