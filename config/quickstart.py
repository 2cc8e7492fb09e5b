"""
The first run: a small TSDAE model on Python's own docstrings, five minutes on two cores, no network.

    python train.py config/quickstart.py

Rows of 16 tokens lose 30 % of them; a perceiver reads what is left into 8 concepts of width 128, and a decoder that
sees nothing else says the whole row. Expect a validation loss near 2.1 nats a token against a unigram floor of 6.8, 13
nats more with the concepts of another row, and reconstructions that you recognise.
"""

dataset = "pydocs"
vocab_size = 4096

objective = "tsdae"
delete_rate = 0.3
positions = "original"

encoder = "perceiver"
decoder = "posonly"
layers = 2
hidden = 128
heads = 4
intermediate = 256
concepts = 8
max_length = 16

lengths = (16,)
batch_size = 32  # 512 tokens a step
lr = 3e-3
warmup = 100
max_steps = 2000  # about 150 s on two free cores
eval_interval = 500
eval_tokens = 16384
log_interval = 50
final_report = "retrieval"
compile = False
