"""A judge behind an OpenAI-style endpoint: its log-probs of two letters, else the letter it says.

The key is read from an environment variable when a judge is made. It goes into one header of a
request and nowhere else: not into a config, a message or a file, and after no redirection.
"""

import concurrent.futures
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax import config
from llm_jax.errors import UserError

_MAY_PASS = (408, 409, 425, 429, 500, 502, 503, 504)
_MOST = 8_000_000  # Bytes of a reply that are read.
_LONGEST = 60.0  # Seconds between two tries.
_LETTER_TOKENS = 8  # Of a reply: a letter, maybe in brackets or after a word.
_TOP = 20  # Likeliest tokens that are asked for; no such endpoint gives more.


class Endpoint:
  """Asks one question a request.

  Args:
    cfg: of the judge.
    letters: the two answers.
    wait: seconds before the first repetition.

  Raises:
    UserError: if the variable of the key is empty.
  """

  def __init__(self, cfg: config.Judge, letters: Sequence[str], wait: float = 0.5):
    self._cfg, self._letters, self._wait = cfg, tuple(letters), wait
    self._key = os.environ.get(cfg.key_variable, "") if cfg.key_variable else ""
    if cfg.key_variable and not self._key:
      raise UserError(
        f"judge, key_variable={cfg.key_variable}: this environment variable is not set"
      )
    self._opener = urllib.request.build_opener(_NoRedirection)
    self._logprobs = True  # Until the endpoint says that it has none.
    self._silent, self._heard = 0, 0
    self._lock = threading.Lock()

  def __call__(self, questions: Sequence[str]) -> np.ndarray:
    """Returns [Q, 2] float64 log-probs of the letters; 0 and 0 for a reply without one.

    Raises:
      UserError: if a request fails for good, or most replies have no letter in them.
    """
    with concurrent.futures.ThreadPoolExecutor(self._cfg.parallel) as pool:
      waiting = [pool.submit(self._ask, text) for text in questions]
      try:
        found = [future.result() for future in waiting]
      except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    said = [row for row in found if row is not None]
    self._silent, self._heard = self._silent + len(found) - len(said), self._heard + len(said)
    if self._silent > max(self._heard, 8):
      raise UserError(
        f"{self._where}: {self._silent} replies of {self._silent + self._heard} name neither "
        f"{' nor '.join(self._letters)}: set model to one that follows instructions"
      )
    return np.array([(0.0, 0.0) if row is None else row for row in found]).reshape(-1, 2)

  @property
  def _where(self) -> str:
    return f"judge, endpoint={self._cfg.endpoint}"

  def _ask(self, text: str) -> tuple[float, float] | None:
    """Returns the log-probs of a reply to one question; None if it names no letter."""
    body = {
      "model": self._cfg.model,
      "messages": [{"role": "user", "content": text}],
      "temperature": 0,
      "max_tokens": _LETTER_TOKENS,
    }
    if self._logprobs:
      try:
        return self._read(self._send(body | {"logprobs": True, "top_logprobs": _TOP}))
      except _Refused as error:
        if error.code not in (400, 422) or "logprob" not in error.text:
          raise UserError(self._clean(f"{self._where} refuses: {error}")) from None
        with self._lock:
          self._logprobs = False
    try:
      return self._read(self._send(body))
    except _Refused as error:
      raise UserError(self._clean(f"{self._where} refuses: {error}")) from None

  def _send(self, body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the reply to a request, which is repeated where that may help.

    Raises:
      _Refused: if the endpoint says that it will never do this.
      UserError: if no try was any good.
    """
    reason = ""
    for number in range(self._cfg.retries + 1):
      asked_to_wait = 0.0
      try:
        return self._once(body)
      except _Refused as error:
        if error.code not in _MAY_PASS:
          raise
        reason, asked_to_wait = str(error), error.wait
      except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(getattr(error, "reason", "") or error or type(error).__name__)
      if number < self._cfg.retries:
        time.sleep(min(max(self._wait * 2**number, asked_to_wait), _LONGEST))
    raise UserError(
      self._clean(f"{self._where} failed {self._cfg.retries + 1} times, at last: {reason}")
    )

  def _once(self, body: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "User-Agent": "llm_jax"}
    if self._key:
      headers["Authorization"] = f"Bearer {self._key}"
    request = urllib.request.Request(
      f"{self._cfg.endpoint.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
    )
    try:
      with self._opener.open(request, timeout=self._cfg.timeout) as reply:
        found = json.loads(reply.read(_MOST))
    except urllib.error.HTTPError as error:
      with error:
        raise _Refused(error) from None
    if not isinstance(found, dict):
      raise ValueError("the reply is no JSON object")
    return found

  def _read(self, reply: Mapping[str, Any]) -> tuple[float, float] | None:
    try:
      choice = reply["choices"][0]
      said = choice["message"]["content"] or ""
      places = (choice.get("logprobs") or {}).get("content") or []
      named = self._named(said)
      for place in places:
        if named and self._letter(place["token"]) == named:
          return self._of_tokens(place)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
      raise UserError(
        f"{self._where}: the reply is not that of an OpenAI-style endpoint ({error!r} is wrong)"
      ) from None
    if not named:
      return None
    return (0.0, -np.inf) if named == self._letters[0] else (-np.inf, 0.0)

  def _named(self, said: str) -> str:
    """Returns the letter that a reply names; "A better one is (B)" names B."""
    letters = "|".join(self._letters)
    for pattern in (rf"\(({letters})\)", rf"(?<!\w)({letters})(?!\w)(?! [a-z])"):
      if found := re.search(pattern, said):
        return found[1]
    return ""

  def _of_tokens(self, place: Mapping[str, Any]) -> tuple[float, float]:
    """Returns log-probs of the letters from the likeliest tokens of a place.

    A letter that is not among them has at most the probability of the least likely of them.
    """
    listed = list(place.get("top_logprobs") or [])
    if all(row["token"] != place["token"] for row in listed):
      listed.append(place)
    logps = {letter: -np.inf for letter in self._letters}
    for row in listed:
      letter = self._letter(row["token"])
      if letter:
        logps[letter] = float(np.logaddexp(logps[letter], row["logprob"]))
    least = min(float(row["logprob"]) for row in listed)
    if len(listed) == 1:  # Of the others nothing is known but what is left.
      least = float(np.log(max(-np.expm1(min(least, 0.0)), 1e-12)))
    first, second = (x if np.isfinite(x) else least for x in logps.values())
    return first, second

  def _letter(self, token: str) -> str:
    bare = token.strip(" \n\t()[].:*\"'\u2581\u0120")
    return bare if bare in self._letters else ""

  def _clean(self, text: str) -> str:
    """Returns a message without the key, which a server may send back."""
    return text.replace(self._key, "[key]") if self._key else text


class _Refused(Exception):
  """An HTTP error.

  Attributes:
    code: the status.
    text: the beginning of what came with it.
    wait: seconds that the server asks to wait for.
  """

  def __init__(self, error: urllib.error.HTTPError):
    self.code = error.code
    self.text = error.read(2000).decode("utf-8", "replace")
    asked = (error.headers or {}).get("Retry-After", "")
    self.wait = float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked or "") else 0.0
    super().__init__(f"HTTP {error.code} {error.reason}: {' '.join(self.text.split())[:300]}")


class _NoRedirection(urllib.request.HTTPRedirectHandler):
  """Follows none: another server is not to see the key."""

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    """Returns None, which makes it an error."""
    return None
