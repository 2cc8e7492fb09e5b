"""
Concepts that mean something, on two cores in four minutes: TSDAE and a bag of words together, rare words counting more.

Expect, on 100 MB of Wikipedia with bpe:8192, STS-B dev .73 (centred) without any training on it: .12 above the same
model untrained, level with the idf-weighted mean of untrained token embeddings, .05 below character TF-IDF. The input
makes .58 of the concepts' variance, and another row's concepts cost the decoder 2.3 nats (docs/LOG.md).

    python train.py config/concepts_cpu.py                                   # Python's docstrings
    python train.py config/concepts_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

base = "config/tsdae_cpu.py"  # a perceiver of 8 concepts, H 128 and 2 layers, rows of 16 and 32 tokens

objective = "tsdae + bow"
positions = "compact"
delete_rate = 0.6
score_rate = 0.25
token_weight = "idf"

batch_size = 64  # 2,048 tokens a step
max_minutes = 4
