"""
Masked LM for two cores: 30 % hidden, rows of 16 and 32 tokens, spectral token embeddings.

BERT's objective (arXiv:1810.04805) through a perceiver (arXiv:2103.03206) and the original project's decoder of token
and position. Expect, on 200 MB of Wikipedia with bpe:16384 after four million tokens, 6.76 nats against a unigram floor
of 7.37, and 1.1 nats more from another row's concepts. With random token embeddings it stays at the floor, and its
decoder ignores the concepts (docs/LOG.md).

    python train.py config/perceiver_mlm_cpu.py                    # Python's docstrings
    python train.py config/perceiver_mlm_cpu.py --dataset=wiki     # text you have prepared
"""

dataset = "pydocs"

objective = "mlm"
mask_rate = 0.3

encoder = "perceiver"
decoder = "input"
layers = 2
hidden = 128
heads = 4
intermediate = 384
concepts = 8
max_length = 32
token_init = "spectral"

lengths = (16, 32)
batch_size = 64  # 2,048 tokens a step
lr = 2e-3
warmup = 200
max_steps = 2000
eval_interval = 500
log_interval = 50
