"""Blocks pages by their address: lists of domains and addresses, and words in the address.

Source: RefinedWeb (Penedo et al. 2023, arXiv:2306.01116, app. G.1). Its lists are not published;
DCLM has reconstructed the words, and the domains are the University of Toulouse's (UT1). No list is
shipped here, for they are third parties' and outdated the next day: the steps take files.
"""

import functools
import re
from collections.abc import Iterator
from urllib.parse import unquote

from llm_jax.data.documents import Document
from llm_jax.data.filters.lists import holds, read_names, read_phrases
from llm_jax.errors import UserError

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")


def blocked_urls(
  document: Document,
  domains: str = "",
  urls: str = "",
  strict: str = "",
  hard: str = "",
  soft: str = "",
  soft_hits: int = 2,
  hosts: tuple[str, ...] = (),
) -> str | None:
  """Drops pages whose address is on a list, or says what they are. Without an address a page stays.

  A domain covers all below it ("b.org" blocks "a.b.org", not "ab.org"): every parent of a host is
  looked up, so no list of public suffixes is needed, and an entry such as "co.uk" blocks them all.

  Args:
    document: to judge.
    domains: file of domains, one a line; millions are fine.
    urls: file of addresses without scheme, such as "b.org/path"; each covers what starts with it at
      a "/", "?" or "#".
    strict: file of words that block wherever they stand, even inside a word or across "-" and ".".
    hard: file of words, of letters and digits, that block where they are a whole word.
    soft: file of words of which `soft_hits` different ones, each a whole word, block.
    soft_hits: how many.
    hosts: domains given in the recipe itself.

  Raises:
    UserError: if no list is given, or a file cannot be read or is empty.
  """
  if not (domains or urls or strict or hard or soft or hosts):
    raise UserError(
      "blocked_urls: no list is given; name a file, as in blocked_urls(domains='lists/domains.txt')"
    )
  if not document.url:
    return None
  address = _SCHEME.sub("", document.url).lower().removeprefix("www.")
  host = host_of(document.url)
  if hosts and any(name in hosts for name in _parents(host)):
    return "url: domain"
  if domains and any(holds(read_names(domains), name) for name in _parents(host)):
    return "url: domain"
  if urls and any(holds(read_names(urls), prefix) for prefix in _prefixes(address)):
    return "url: address"
  said = unquote(address)
  if strict and _compact(strict).search("".join(_WORD.findall(said))):
    return "url: strict word"
  words = frozenset(_WORD.findall(said))
  if hard and words & _whole(hard):
    return "url: hard word"
  if soft and len(words & _whole(soft)) >= soft_hits:
    return "url: soft words"
  return None


def host_of(url: str) -> str:
  """Returns the host of an address in lower case, without user, port and trailing dot."""
  host = re.split(r"[/?#]", _SCHEME.sub("", url), maxsplit=1)[0].rpartition("@")[2].lower()
  if host.startswith("["):  # An IPv6 address.
    return host.partition("]")[0].strip("[]")
  return host.partition(":")[0].rstrip(".")


def _parents(host: str) -> Iterator[str]:
  """Yields "a.b.org", "b.org", "org" for "a.b.org"."""
  while host:
    yield host
    host = host.partition(".")[2]


def _prefixes(address: str) -> Iterator[str]:
  """Yields the address, and what is before each of its separators."""
  yield address
  yield address.rstrip("/")
  for separator in re.finditer(r"[/?#]", address):
    yield address[: separator.start()]


@functools.lru_cache(maxsize=16)
def _compact(path: str) -> re.Pattern[str]:
  """One pattern for the words of a file, without what is no letter or digit."""
  words = {"".join(_WORD.findall(word)) for word in read_phrases(path).everything} - {""}
  return re.compile("|".join(sorted(map(re.escape, words))))


@functools.lru_cache(maxsize=16)
def _whole(path: str) -> frozenset[str]:
  """The words of a file, each of which can be a whole word of an address."""
  words = read_phrases(path).everything
  for word in sorted(words):
    if not _WORD.fullmatch(word):
      raise UserError(f"{path}: {word!r} is no word of letters and digits, so it would never match")
  return words
