"""The published networks written out plainly, to compare with: the arithmetic their papers and releases describe.

Nothing here is fast on purpose, and nothing of it serves a user. Windows are padded and the padding is computed;
attention makes its scores, adds the position bias and takes a softmax in separate steps; index tensors are made on the
CPU in every block; every transposed convolution is one; a mask is enlarged over its whole field. `volsam bench` times
our networks against these, and tests check ours against them at sizes that no recorded fixture has.

Weights carry the names of the originals, so that one set of tensors fills both sides. Only torch is used.

Sources: Kirillov et al. 2023 (SAM); Cheng et al. 2023 (SAM-Med2D); Wang et al. 2023 (SAM-Med3D); Shen et al. 2024
(FastSAM3D); Gong et al. 2024 (3DSAM-adapter); Chen et al. 2024 (MA-SAM); Hu et al. 2023 (AutoSAM).
"""
