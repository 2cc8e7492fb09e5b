"""
TSDAE over Qwen2.5-0.5B as the token level: six layers of 128 concepts of width 512 read its states.

Frozen for ever: its vocabulary of 151,936 entries makes token files of 32 bits. Never trained: it is for GPUs.

    python data/hub/prepare.py --name=minipile --tokenizer=hub:Qwen/Qwen2.5-0.5B
    torchrun --nproc_per_node=8 train.py config/qwen_tsdae_l6.py
"""

base = "config/smollm2_tsdae_l2.py"

backbone = "hub:Qwen/Qwen2.5-0.5B"
backbone_freeze = 1.0
layers = 6
intermediate = 2048
