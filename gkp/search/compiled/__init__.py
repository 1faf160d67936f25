"""The search in loops that Numba compiles: the same kernels as the tensors of `gkp.search.beam`, much sooner.

But for kernels that are equal: of sets that tie by them, the two may keep another one, of the same cost.
Numba takes half a second to import, and some seconds to compile when a machine first searches; it keeps the
result beside these files, or in the user's cache. `gkp.search` imports them where it searches, and does
without where Numba is not installed.
"""
