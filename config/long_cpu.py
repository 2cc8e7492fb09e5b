"""
Rows of up to 4,096 tokens, read into 8 to 64 concepts, on two cores: the cost grows with the length, not its square.

As concepts_cpu, but each step draws rows of 512 or 4,096 tokens, which run over the sentences of a document. With
--init_from=out/concepts_cpu it begins with the weights of short rows, their positions stretched. Never trained to the
end.

    python train.py config/long_cpu.py --dataset=wiki
    python eval_long.py --run=out/long_cpu --tasks=controls --lengths=512,2048
"""

base = "config/concepts_cpu.py"

lengths = (512, 4096)
max_length = 4096
concepts = 64
concepts_per_token = 0.015625
batch_size = 2
max_steps = 900
