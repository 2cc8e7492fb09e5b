"""
Concepts that mean something, on two cores in about eight minutes: spectral token embeddings, TSDAE and a bag of words.

Half of the tokens are deleted, one encoder pass reads the others, the decoder predicts the whole row (TSDAE,
arXiv:2104.06979) and the mean of the concepts its words, rare ones counting more (arXiv:1703.10960). Expect, on 200 MB
of lower-cased Wikipedia with bpe:16384, a Pearson of adapted cosines of 78.1 on STS-B dev and 69.7 on SICK dev
(character TF-IDF 78.1 and 64.2, the mean of its own tokens 74.5 and 64.7): docs/RESULTS.md.

    python train.py config/concepts_cpu.py                    # Python's docstrings
    python train.py config/concepts_cpu.py --dataset=wiki     # text you have prepared
"""

base = "config/tsdae_cpu.py"  # a perceiver of 8 concepts and 2 layers, rows of 16 and 32 tokens

token_init = "spectral"
whitening = 0.25
hidden = 256
intermediate = 512

objective = "tsdae + bow"
bow_source = "survivors"
positions = "compact"
delete_rate = 0.5
score_rate = 0.25
token_weight = "idf"

batch_size = 64  # 2,048 tokens a step
max_steps = 3600
