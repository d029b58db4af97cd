"""What a compiled program would need and take, on a chip that is not here.

`flops` counts a program's matrix products, `hlo` what its compiled form moves,
`chips` says what a chip can do, and `estimate` puts the three together;
`libtpu` lets the TPU's compiler run without a TPU.
"""
