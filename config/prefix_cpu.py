"""
Prefix to suffix on two cores: the first 30, 40 or 50 % of a row are read, a causal decoder goes on from the concepts.

What is predicted is not what was read, so copying does not help (SODA, Hudson et al. 2024, arXiv:2311.17901;
Skip-Thought, Kiros et al. 2015, arXiv:1506.06726). Half of the words before are hidden from the decoder
(arXiv:1511.06349). `--prefix_source=next` reads a span and predicts the next one. Never trained at this size; at
width 128 and 4.5 TFLOP with position queries (docs/LOG.md) 52.8 on STS-B dev, below the untrained 60.9. A causal
decoder of the original project's gave an STS-B of 0.70 after 9.6 M documents.

    python train.py config/prefix_cpu.py                    # Python's docstrings
    python train.py config/prefix_cpu.py --dataset=wiki     # text you have prepared
    python sample.py --run=out/prefix_cpu --mode=continue --text="Return the number of"
"""

base = "config/concepts_cpu.py"

objective = "prefix"
decoder = "causal"
word_dropout = 0.5
lengths = (32, 64)
max_length = 64
