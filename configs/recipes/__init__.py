"""Published pipelines of post-training, one a file; `:tiny` runs any of them in a minute."""
