"""What accelerators can do at most, as sold, by the name that JAX gives them."""

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

# Rated watts of one device, of the same data sheets (SXM modules where there are several). Google
# gives none for its chips.
WATTS = (
  ("H100 PCIe", 350.0),
  ("H100 NVL", 400.0),
  ("H100", 700.0),
  ("H200", 700.0),
  ("B200", 1000.0),
  ("A100", 400.0),
  ("L40S", 350.0),
  ("L4", 72.0),
  ("RTX 4090", 450.0),
)


def peak_flops(kind: str) -> float | None:
  """Returns the dense bfloat16 FLOPs per second of a device; None where it is not known.

  Args:
    kind: `jax.Device.device_kind`, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite", or a name that
      people use, such as "a100-80".
  """
  return _of(kind, PEAK_FLOPS)


def watts(kind: str) -> float | None:
  """Returns the rated power of a device; None where it is not known."""
  return _of(kind, WATTS)


def _of(kind: str, table: tuple[tuple[str, float], ...]) -> float | None:
  words = f" {kind} ".replace("-", " ").upper()
  for name, value in table:
    # Whole words: an L40 is no L4, and a "TPU v4 lite" is no TPU v4. A "TPU v6" may go on.
    word = f" {name}".upper()
    if f"{word} " in words or (name.startswith("TPU v6") and word in words):
      return None if words.startswith(" TPU V4 LITE") else value
  return None
