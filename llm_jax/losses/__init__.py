"""The loss library: arrays in, one float32 value per pair [B] or per token [B, T] out."""
