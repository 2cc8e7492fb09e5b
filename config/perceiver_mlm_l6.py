"""
The original project's canonical run: masked LM at 15 %, six layers, decoder queries of token and position.

    torchrun --nproc_per_node=4 train.py config/perceiver_mlm_l6.py

Logged there (2026-02-08): MLM loss 2.537, 61M parameters (tied), 40 epochs of MiniPile (first 512 tokens of a document,
78,140 steps), 10 h 44 min on four RTX 3090, 132k tokens/s each; STS-B 0.627, MRPC F1 81.3 (majority class: 81.2).
Here rows are packed and unpadded, and embeddings do not decay, so losses are not comparable to the digit.
"""

dataset = "minipile"
vocab_size = 50368  # ModernBERT's tokenizer

objective = "mlm"
mask_rate = 0.15
replace = "80_10_10"

encoder = "perceiver"
decoder = "input"
original_structure = True
tied = True
layers = 6
hidden = 512
heads = 8
intermediate = 2048
concepts = 128
max_length = 512
dropout = 0.1

lengths = (512,)
batch_size = 512  # 262,144 tokens a step
micro_batch = 128  # rows of 512 tokens: about 6.4 GB by count of tensors (8 GB for TSDAE), not yet run on a GPU of 24
lr = 3e-4
schedule = "cosine"
warmup = 3000
lr_end = 0.0
weight_decay = 0.01
beta2 = 0.999
clip = 1.0
max_steps = 78_140
eval_interval = 5000
ckpt_interval = 5000
log_interval = 100
seed = 42
