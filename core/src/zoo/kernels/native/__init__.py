"""The CPU kernels: a C++ library reached by ctypes, its thread pools, and recorded steps."""
