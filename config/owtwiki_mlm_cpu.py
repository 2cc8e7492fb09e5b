"""
Masked LM on OpenWebText and Wikipedia for two cores: perceiver_mlm_cpu on the text that the seeds planned (their B1).

One shard of each is plenty. Put them into DIR as they lie on the hub (DIR/Skylion007/openwebtext/plain_text/ and
DIR/wikimedia/wikipedia/20231101.en/), or leave --local out and have all 33 GB streamed. bpe: is trained on the first
100 MB, which are OpenWebText's. Never trained: there is no number to expect.

    python data/hub/prepare.py --name=openwebtext_wikipedia --tokenizer=bpe:16384 --local=DIR
    python train.py config/owtwiki_mlm_cpu.py
"""

base = "config/perceiver_mlm_cpu.py"

dataset = "openwebtext_wikipedia"
