"""
TSDAE over SmolLM2-135M as the token level (the original project's plan): two layers of 128 concepts read its states.

It stays frozen for the first tenth of training, then learns at a tenth of the rate. Its tokens attend to earlier ones
alone: without training the other direction does harm (docs/LOG.md). Never trained: it is for GPUs.

    python data/hub/prepare.py --name=minipile --tokenizer=hub:HuggingFaceTB/SmolLM2-135M
    torchrun --nproc_per_node=8 train.py config/smollm2_tsdae_l2.py
"""

base = "config/tsdae_l6.py"

original_structure = False
backbone = "hub:HuggingFaceTB/SmolLM2-135M"
backbone_freeze = 0.1
backbone_lr = 0.1
positions = "compact"
tied = True
layers = 2
intermediate = 1024
vocab_size = 0
