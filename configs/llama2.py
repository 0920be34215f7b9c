"""Llama 2 pretraining (Touvron et al. 2023, arXiv:2307.09288, section 2): shape, rates, batch.

python -m tools.plan --config=configs/llama2.py:70b --devices=512 --compile
python -m experiments.pretrain --config=configs/llama2.py:7b --config.prepared=DIR --workdir=DIR
Result: the plan's table; 4M tokens a step, 2T in all.
"""

from llm_jax import config
from llm_jax.models import presets

# (data, fsdp, tensor): 64 devices for the small ones, 512 for the 70B.
_MESHES = {"7b": (-1, 64, 1), "13b": (-1, 64, 1), "70b": (-1, 64, 8)}


def get_config(size: str = "7b") -> config.Pretrain:
  """Returns the pretraining of one size: 7b, 13b or 70b."""
  cfg = config.Pretrain(model=presets.llama2(size))
  cfg.model.attention = "xla_chunked"
  data, fsdp, tensor = _MESHES[size]
  cfg.mesh = config.Mesh(data=data, fsdp=fsdp, tensor=tensor)
  cfg.length, cfg.batch, cfg.steps = 4096, 1024, 500_000
  cfg.eval_every, cfg.checkpoint_every, cfg.log_every = 5000, 1000, 10
  cfg.optimizer = config.Optimizer(
    lr=3e-4 if size != "70b" else 1.5e-4,
    schedule="cosine",
    warmup=2000,
    final=0.1,
    eps=1e-5,
    weight_decay=0.1,
  )
  return cfg
