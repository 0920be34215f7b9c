"""A published pipeline of post-training, stage after stage, from a pretrained model.

python -m experiments.recipe --config=configs/recipes/zephyr.py --workdir=runs/zephyr
python -m experiments.recipe --config=configs/recipes/zephyr.py:tiny --workdir=runs/zephyr_tiny
"""

from experiments import _launch

if __name__ == "__main__":
  _launch.main("recipe", config=str(_launch.CONFIGS / "recipes"))
