"""Triton kernels, a folder per operation: reference, kernel, operator, configurations. Usable without the compiler."""
