"""The command that serves: bad input is one line, and other machines need a token."""

import socket

import pytest

from llm_jax.errors import UserError
from tools import serve


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--rows=0"], "--rows=0 must be at least 1"),
    (["--port=0"], "--port=0 must be 1 to 65535"),
    (["--bind=everywhere"], "must be an address"),
    (["--bind=0.0.0.0"], "LLM_JAX_TOKEN"),
    (["--bind=::"], "LLM_JAX_TOKEN"),
    ([], "holds no trained model"),
  ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys, monkeypatch):
  monkeypatch.delenv(serve.TOKEN, raising=False)
  assert serve.main([f"--workdir={tmp_path}", *words]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(capsys):
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    with pytest.raises(UserError, match=f"--port={port}: Address already in use"):
      serve._listener("127.0.0.1", port)
