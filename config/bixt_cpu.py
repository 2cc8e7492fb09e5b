"""
Tokens and concepts read each other through one matrix, on two cores; tokens are half as wide as concepts.

BiXT, Hiller et al. 2024, arXiv:2402.12138. Never trained at this size (H 256). At H 128 with tokens of 64, in the grid
of encoders at 9 TFLOP (docs/RESULTS.md; centred Pearson, two seeds): STS-B dev 71.4 and 72.2, SICK dev 68.4 and 68.4;
with tokens of 128 71.5 and 71.5, 68.4 and 68.3. The perceiver there: 72.2 and 72.4, 69.2 and 68.5.

    python train.py config/bixt_cpu.py                    # Python's docstrings
    python train.py config/bixt_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "bixt"
token_dim = 128
heads = 8  # of width 32
