"""One launcher an experiment: `python -m experiments.NAME --workdir=DIR`."""
