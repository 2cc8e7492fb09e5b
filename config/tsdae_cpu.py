"""
TSDAE for two cores: the quickstart's model on rows of 16 and 32 tokens, ten minutes.

    python train.py config/tsdae_cpu.py                                   # Python's docstrings
    python train.py config/tsdae_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/quickstart.py"

lengths = (16, 32)
max_length = 32
max_minutes = 10
