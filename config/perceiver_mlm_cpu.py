"""
Masked LM for two cores: our defaults, 30 % hidden, rows of 32 and 64 tokens, ten minutes.

Expect little: on 50 MB of Wikipedia, after five million tokens, it stands at the unigram floor (7.5 nats) and its
verdict says that the decoder ignores the concepts (docs/LOG.md; with init="fan_in"). It is the baseline to beat.

    python train.py config/perceiver_mlm_cpu.py                                   # Python's docstrings
    python train.py config/perceiver_mlm_cpu.py --dataset=wiki --vocab_size=0     # text you have prepared
"""

dataset = "pydocs"
vocab_size = 4096

objective = "mlm"
mask_rate = 0.3

encoder = "perceiver"
decoder = "input"
layers = 2
hidden = 128
heads = 4
intermediate = 384
concepts = 16
max_length = 64

lengths = (32, 64)
batch_size = 32  # 2,048 tokens a step
lr = 2e-3
warmup = 200
max_minutes = 10
eval_interval = 500
log_interval = 50
