"""The duplicates that a report shows."""

import json

from llm_jax.data.pipeline import clusters


def test_sizes_add_up_and_the_largest_are_shown_with_a_few_members(tmp_path):
  sizes = [2] * 10 + [3, 4, 7, 40]
  found = [
    {"cluster": f"c{i:02d}", "members": [f"c{i:02d}", *(f"c{i:02d}-{k}" for k in range(1, size))]}
    for i, size in enumerate(sizes)
  ]
  (tmp_path / "clusters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
  drops = [
    {"id": m, "step": step, "kept": row["cluster"], "score": 0.9, "reason": "near", "sample": m}
    for step in ("other", "near")
    for row in found
    for m in row["members"][1:]
  ]
  (one,) = clusters.describe({"near": tmp_path, "lines": tmp_path / "none"}, drops)
  assert (one["clusters"], one["documents"]) == (14, 74)
  assert one["sizes"] == [
    {"members": 2, "clusters": 11}, {"members": 4, "clusters": 2}, {"members": 32, "clusters": 1}
  ]  # fmt: skip
  assert [row["cluster"] for row in one["largest"]] == ["c13", "c12", "c11", "c10", "c00"]
  assert [row["members"] for row in one["largest"]] == [40, 7, 4, 3, 2]
  assert [len(row["dropped"]) for row in one["largest"]] == [4, 4, 3, 2, 1]
  assert one["largest"][0]["dropped"][0] == {
    "id": "c13-1", "kept": "c13", "score": 0.9, "reason": "near", "sample": "c13-1"
  }  # fmt: skip
