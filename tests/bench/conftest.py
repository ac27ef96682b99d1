"""Leaves numerics/ to test_launches_interpreted.py, which runs it under the interpreter: its shapes are for that."""

from interpreter import INTERPRETED

collect_ignore = [] if INTERPRETED else ["numerics"]
