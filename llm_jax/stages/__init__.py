"""One module a stage; each has `run(cfg, workdir, **swap)`."""
