"""
One read of the tokens, then latents alone, on two cores: config/concepts_cpu.py with another encoder.

    python train.py config/perceiver_io_cpu.py                                   # Python's docstrings
    python train.py config/perceiver_io_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/concepts_cpu.py"

encoder = "perceiver_io"
layers = 3
