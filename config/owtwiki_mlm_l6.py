"""
The original project's plan for more text: perceiver_mlm_l6 on OpenWebText and Wikipedia, ten epochs.

    python data/hub/prepare.py --name=openwebtext_wikipedia
    torchrun --nproc_per_node=8 train.py config/owtwiki_mlm_l6.py

Planned there (their B1): 15 million documents, 33 GB of text, 10 to 15 epochs in place of MiniPile's 40, the same
batch, cosine from 3e-4 after 3,000 steps; hoped for: a loss below 2.0 (2.537 on MiniPile) and a rank above 60 of 128.
Never trained, there or here: 61,059,584 parameters, perceiver_mlm_l6's FLOPs a token.
"""

base = "config/perceiver_mlm_l6.py"

dataset = "openwebtext_wikipedia"
lengths = (512,)
lr = 3e-4
schedule = "cosine"
max_epochs = 10
