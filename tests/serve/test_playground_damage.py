"""Runs that are strange, damaged or gone, a server that ends, and clients that leave."""

import http.client
import json
import shutil
import threading
import time

import pytest

from llm_jax.errors import UserError
from llm_jax.serve import app, probe, workdirs
from llm_jax.serve.models import Models
from tests.serve.conftest import Client, started
from tests.serve.test_playground import get, read

STRANGE = {
  "config.json": '{"prepare": 1, "sft": 2, "preferences": 3, "evaluate": 4}',
  "time.json": '{"seconds": {"sft": NaN, "prepare": "long"}}',
  "summary.json": '{"pretrain": {"parameters": "many", "tokens": NaN}}',
  "scaling_law.json": '{"law": {"E": "low"}}',
  "prepare/config.json": "{}",
  "prepare/manifest.json": '{"splits": {"train": {"documents": "x", "tokens": 3}, "test": []}}',
  "preferences/config.json": "{}",
  "preferences/counts.json": '{"pairs": {"train": {"hard": "x", "easy": 2}, "test": null}}',
  "evaluate/config.json": "{}",
  "evaluate/evaluate.json": '{"win_rates": {"dpo_vs_sft": {}, "ppo_vs_sft": {"rate": 1e999}}}',
  "sft/config.json": '{"steps": 10}',
  "sft/metrics.jsonl": '{"step": 1, "loss": 2.5, "\\ud800": 1, "a": 1e999}\n'
  '{"step": 2, "loss": NaN, "eval/loss": "\\ud800", "constructor": 1}\n' + "[" * 5000 + "\n",
}


def test_no_strange_file_of_a_run_takes_the_page_down(play, tmp_path):
  for name, text in STRANGE.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  own = play._replace(workdirs=workdirs.Workdirs([tmp_path]))
  port, stop = started(app.create(play.models, play=own))
  client = Client(port)
  try:
    found = read(client, "/api/run")
    figures = {stage["name"]: stage["figures"] for stage in found["stages"]}
    assert [one["value"] for one in figures["sft"]] == [2.5]
    assert [one["value"] for one in figures["prepare"]] == [3]
    assert [one["value"] for one in figures["preferences"]] == [2, 0]
    assert figures["evaluate"] == [] and not any(s["seconds"] for s in found["stages"])
    stages = read(client, "/api/curves")["stages"]
    assert stages["sft"]["x"] == [1, 2] and stages["sft"]["y"]["loss"] == [2.5, None]
    assert read(client, "/api/plan")["runs"] == []
    shutil.rmtree(tmp_path)
    found = read(client, "/api/run")
    assert found["gone"] and found["stages"] == [] and found["files"] == []
    assert get(client, "/api/file?name=config.json")[0] == 404
  finally:
    stop()


def test_a_server_that_ends_lets_pages_go_that_watch(play):
  own = play._replace(closing=threading.Event())
  port, stop = started(app.create(play.models, play=own))
  try:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/api/events")
    reply = connection.getresponse()
    assert reply.readline().startswith(b"data: ")
    own.closing.set()
    assert reply.read().strip() == b""  # The stream's end, not an error.
    reply.close()
    connection.close()
  finally:
    stop()


def test_what_is_damaged_or_missing_is_named_at_the_start(workdir, tmp_path):
  with pytest.raises(UserError, match="nowhere"):
    Models(workdir, str(tmp_path / "nowhere"), wait=True)
  shutil.copytree(workdir / "sft", tmp_path / "sft")
  (tmp_path / "sft" / "model.json").write_text('{"layers": ')
  with pytest.raises(UserError, match=r"model\.json is damaged"):
    Models(tmp_path, wait=True)


def test_nothing_is_computed_for_who_has_left(page, monkeypatch):
  calls, own = [], probe.next_token

  def slow(*given):
    calls.append(given)
    time.sleep(0.5)
    return own(*given)

  monkeypatch.setattr(probe, "next_token", slow)
  body = {"model": "sft", "text": "a"}
  for _ in range(8):  # As a person types who is faster than the model.
    connection = http.client.HTTPConnection("127.0.0.1", page.port)
    connection.request("POST", "/api/next", json.dumps(body), {"content-type": "application/json"})
    time.sleep(0.02)
    connection.close()
  assert page.post("/api/next", **body)[0] == 200
  assert len(calls) <= 3
