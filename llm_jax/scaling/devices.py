"""What accelerators can do at most, by the name that JAX gives them: dense bfloat16, as sold."""

# Dense bfloat16 FLOPs per second of one device of JAX. Sources: NVIDIA's data sheets of the A100,
# H100, H200, L4 and L40S, its white paper on Ada (RTX 4090, with sums in float32) and its Blackwell
# data sheet; of figures "with sparsity" the half. Google's pages on TPU v4, v5e, v5p and v6e in the
# documentation of Cloud TPU, for a chip. The first name that a device's own has in it counts.
PEAK_FLOPS = (
  ("H100 PCIe", 756e12),
  ("H100 NVL", 835e12),
  ("H100", 989e12),
  ("H200", 989e12),
  ("B200", 2250e12),
  ("A100", 312e12),
  ("L40S", 362e12),
  ("L4", 121e12),
  ("RTX 4090", 165e12),
  ("TPU v6", 918e12),
  ("TPU v5 lite", 197e12),
  ("TPU v5e", 197e12),
  ("TPU v5", 459e12),
  ("TPU v4", 275e12),
)


def peak_flops(kind: str) -> float | None:
  """Returns the dense bfloat16 FLOPs per second of a device; None where it is not known.

  Args:
    kind: `jax.Device.device_kind`, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite".
  """
  words = f" {kind} ".replace("-", " ")
  for name, peak in PEAK_FLOPS:
    # Whole words: an L40 is no L4, and a "TPU v4 lite" is no TPU v4. A "TPU v6" may go on.
    if f" {name} " in words or (name.startswith("TPU v6") and f" {name}" in words):
      return None if kind.startswith("TPU v4 lite") else peak
  return None
