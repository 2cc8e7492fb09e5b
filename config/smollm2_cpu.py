"""
Concepts on a pretrained token level, on two cores: a perceiver reads the frozen states of SmolLM2-135M, and a bag of
words trains it.

The text is prepared with the model's own tokenizer, and no word of it is lower-cased. Six layers are best for a fixed
number of FLOPs. Expect, on 50 MB of cased Wikipedia, a Pearson of adapted cosines of 78.3 on STS-B dev and 71.2 on
SICK dev (character TF-IDF 78.1 and 64.2, the untrained twin 65.4 and 62.2), mean of two seeds: docs/RESULTS.md.

    python data/text/prepare.py --name=wiki_smollm2 --tokenizer=hub:HuggingFaceTB/SmolLM2-135M --files wiki_*.txt.xz
    python train.py config/smollm2_cpu.py

Without a network: --backbone=FOLDER, and --tokenizer=FOLDER/tokenizer.json when preparing.
"""

base = "config/embed_cpu.py"  # bag of words of the row; 8 concepts, 2 layers, rows of 16 and 32 tokens

dataset = "wiki_smollm2"
backbone = "hub:HuggingFaceTB/SmolLM2-135M"
backbone_layers = 6
hidden = 576
intermediate = 1152
heads = 9

batch_size = 32  # 1,024 tokens a step
max_steps = 1000
warmup = 40
