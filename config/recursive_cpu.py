"""
One shared layer for two cores, 2 to 6 times in training, any number later (--iterations=12).

As ALBERT shares layers (arXiv:1909.11942), at random depths (Geiping et al. 2025, arXiv:2502.05171). Never trained at
this size (H 256). At H 128 with 1 to 4 times, in the grid of encoders at 9 TFLOP (docs/RESULTS.md; centred Pearson, two
seeds): STS-B dev 70.9 and 71.6, SICK dev 67.4 and 67.6; the perceiver 72.2 and 72.4, 69.2 and 68.5. From the second
time on STS-B is flat there (70.8 at 2, 70.9 at 4, 70.7 at 12: docs/LOG.md).

    python train.py config/recursive_cpu.py                    # Python's docstrings
    python train.py config/recursive_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "recursive"
iterations = 6
min_iterations = 2
