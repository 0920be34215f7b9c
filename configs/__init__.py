"""One file an experiment, each with get_config(); `--config=FILE` takes any of them."""
