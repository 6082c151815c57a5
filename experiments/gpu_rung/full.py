"""The rung: five cells of 4.2 million tokens, on one NVIDIA GPU with 80 GB.

  make material
  python -m experiments.gpu_rung.corpora
  python -m experiments.grid --grid=experiments/gpu_rung/full.py --workdir=experiments/gpu_rung/results

The last command needs no network but for RULER's package (`make ruler`), and may be ended at any time: started again it
goes on. A finished cell stands in results/outcomes/; results/roots_256/ has the first two, with half of the roots.
"""

from experiments.gpu_rung.corpora import DIRECTORY
from experiments.gpu_rung.rung import Size

# 256 roots filled 157 of PolicyLong's 256 sequences (docs/gpu.md); a round stops when its own are filled.
SIZE = Size(DIRECTORY, length=16_384, rounds=4, steps=32, batch=8, accumulation=4, roots=512, root_tokens=1024,
            anchors=12, top_k=6, tokens_per_batch=65_536, lengths=(4096, 8192, 16_384), tasks=("ruler",), prompts=16,
            documents=16, short_window=4096, simulated_devices=0)
SEEDS = (0, 1, 2)
prepare, get_config, cells, measure = SIZE.prepare, SIZE.get_config, SIZE.cells, SIZE.measure
