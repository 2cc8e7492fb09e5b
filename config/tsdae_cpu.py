"""
TSDAE alone for two cores: a perceiver of 8 concepts of width 128 on rows of 16 and 32 tokens, ten minutes.

Wang et al. 2021, arXiv:2104.06979, with a decoder of position queries (Perceiver IO, arXiv:2107.14795). Expect, on 50
MB of Wikipedia with bpe:16384 after two million tokens, 2.4 nats a token on rows of 16 and 4.2 on rows of 32, against a
unigram floor of 7.5; another row's concepts add 8.8 (docs/LOG.md; measured with init="fan_in").

    python train.py config/tsdae_cpu.py                    # Python's docstrings
    python train.py config/tsdae_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/quickstart.py"

objective = "tsdae"
hidden = 128
intermediate = 256
token_init = "random"
whitening = 0.0
lengths = (16, 32)
max_length = 32
max_minutes = 10
final_report = "losses"
