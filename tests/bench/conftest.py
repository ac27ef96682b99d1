"""Leaves numerics/ out where kernels cannot run: test_launches_interpreted.py runs it under the interpreter there."""

from interpreter import left_out

collect_ignore = left_out("numerics")
