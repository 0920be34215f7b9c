"""A simple model of the network between devices: what collectives take, and what that leaves."""

import math
from typing import NamedTuple


class Network(NamedTuple):
  """Devices in nodes, a fast network inside of them and a slow one between.

  The defaults are those of 8 x H100 nodes as NVIDIA sells them (DGX H100): NVLink of the fourth
  generation, 450 GB/s in each direction, and one 400 Gb/s adapter for each GPU.

  Attributes:
    node: devices in a node.
    inside: bytes per second that a device sends to its node.
    outside: bytes per second that it sends beyond.
    latency: seconds that a message takes.
  """

  node: int = 8
  inside: float = 450e9
  outside: float = 50e9
  latency: float = 10e-6

  def leaves_node(self, group: tuple[int, ...]) -> bool:
    """Whether a group of devices, numbered node by node, spans several."""
    return group[0] // self.node != group[-1] // self.node

  def seconds(self, sent: float, count: int, group: tuple[int, ...]) -> float:
    """Returns the time of collectives: bytes over bandwidth, and log2 n messages each.

    Args:
      sent: bytes that a device sends in all of them.
      count: how many there are.
      group: the devices of one group, in order.
    """
    bandwidth = self.outside if self.leaves_node(group) else self.inside
    return sent / bandwidth + count * self.latency * math.ceil(math.log2(max(len(group), 2)))


class Scaling(NamedTuple):
  """A step by the model.

  Attributes:
    compute: seconds of products.
    inside: seconds of collectives within nodes; nothing hides them, as layers wait for them.
    outside: seconds of those between nodes, which work may hide.
  """

  compute: float
  inside: float
  outside: float

  @property
  def hidden(self) -> float:
    """Share of the step that is compute, if all that leaves a node is hidden behind the rest."""
    return self.compute / max(self.compute + self.inside, self.outside)

  @property
  def shown(self) -> float:
    """The same if nothing is hidden."""
    return self.compute / (self.compute + self.inside + self.outside)
