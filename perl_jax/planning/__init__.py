"""Memory and time of a compiled program on a chip that need not be present.

`flops` counts the matrix products of a program, `hlo` the bytes that its
compiled form moves, `chips` lists the peak rates of chips, and `estimate`
combines the three; `libtpu` lets the TPU's compiler run without a TPU.
"""
