"""
One read of the tokens, then latents alone, on two cores: config/concepts_cpu.py with another encoder.

Perceiver IO, Jaegle et al. 2022, arXiv:2107.14795. Never trained at this size (H 256). At H 128, in the grid of
encoders at 9 TFLOP (docs/RESULTS.md; centred Pearson, two seeds): STS-B dev 71.0 and 70.6, SICK dev 66.9 and 66.5. The
perceiver, which reads in each of its two layers: 72.2 and 72.4, 69.2 and 68.5.

    python train.py config/perceiver_io_cpu.py                    # Python's docstrings
    python train.py config/perceiver_io_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "perceiver_io"
layers = 3
