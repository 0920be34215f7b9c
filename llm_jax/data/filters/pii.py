"""Masks what points to a person: email and IP addresses, phone, card and bank account numbers.

After Dolma (Soldaini et al. 2024, arXiv:2402.00159), whose marks are the defaults, and FineWeb
(Penedo et al. 2024, arXiv:2406.17557), which masks email and public IP addresses only. What has a
checksum is checked. Patterns begin with a character, not with a look back, and give nothing back
("*+"): the search jumps from digit to digit, and no text can make it slow.
"""

import ipaddress
import re
from collections.abc import Callable

# What may stand before "@" (less "|", which ends our own marks), and a domain with a dot.
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{}~.-]{1,64}\Z")
_NO_START = "!#$%&'*+/=?^`{}~.-"
_HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}+\.)+[A-Za-z][A-Za-z0-9-]{0,22}[A-Za-z0-9]")
_IPV4 = re.compile(r"\d(?<![\w.].)\d{0,2}(?:\.\d{1,3}){3}+(?!\w|\.\d)")
# Global unicast addresses are 2000::/3, so that times, C++ and MAC addresses are none.
_IPV6 = re.compile(r"[23](?<![\w:.].)[0-9a-fA-F]{3}(?::[0-9a-fA-F]{0,4}){2,7}+(?![\w:])")
# What stands before four numbers with dots that are a version or a section.
_VERSION = re.compile(
  r"(?:\b(?:v|ver|versions?|releases?|rev|revision|build|update|firmware|sections?|chapter|sec)"
  r"[.:#]?\s*|(?:^|[^\d])-|=|~|\^|[^:/]/|§\s*)\Z",
  re.IGNORECASE,
)
# Bare, or 4-4-4-4, 4-6-5 (American Express), 4-6-4 (Diners Club).
_CARD = re.compile(
  r"[2-6](?<![\w.,+-].)(?:\d{13,18}+|\d{3}([ -])(?:\d{4}\1\d{4}\1\d{4}|\d{6}\1\d{4,5}))"
  r"(?!\w|[.,-]\d)"
)
_CARD_KINDS = re.compile(
  r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
  r"|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}"
)
_IBAN = re.compile(r"[A-Z](?<!\w.)[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3}+)?")
# Characters of an account number by country: the registry of ISO 13616.
_IBAN_LENGTHS = {
  entry[:2]: int(entry[2:])
  for entry in (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20"
    " EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27"
    " JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18"
    " NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24"
    " TR26 UA29 VA22 VG24 XK20"
  ).split()
}
_GAP = r"(?:[ .-]|\)[ -]?| ?\()?"
# International: a plus sign and 8 to 15 digits (ITU-T E.164), grouped as people do.
_ABROAD = re.compile(rf"\+(?<![\w+].)[1-9](?:{_GAP}\d){{7,14}}+(?!\w)")
# North American: area code, exchange and number; the first two never start with 0 or 1.
_AREA = re.compile(r"\((?<!\w.)[2-9]\d\d\)[ .-]?[2-9]\d\d[ .-]\d{4}(?!\w|[.,-]\d)")
_DASHED = re.compile(
  r"[1-9](?<![\w.,+/$€£-].)(?:(?<=1)[.-][2-9]|(?<=[2-9]))\d\d([.-])[2-9]\d\d\1\d{4}(?!\w|[.,-]\d)"
)
# Any number of 7 to 15 digits that is called one.
_NUMBER = re.compile(rf"\d(?<![\w.,+].)(?:{_GAP}\d){{6,14}}+(?!\w)")
_CALLED = re.compile(
  r"\b(?:tel|telephone|phone|fax|mobile|cell|whatsapp)\b[.:]{0,2}\s*(?:(?:no|number)\b[.:]{0,2}\s*)?\(?\Z",
  re.IGNORECASE,
)
_DATE = re.compile(r"(?:19|20)\d\d[-. ]?[01]\d[-. ]?[0-3]\d")


def mask_pii(
  text: str,
  email: str = "|||EMAIL_ADDRESS|||",
  ip: str = "|||IP_ADDRESS|||",
  phone: str = "|||PHONE_NUMBER|||",
  card: str = "|||CARD_NUMBER|||",
  account: str = "|||BANK_ACCOUNT|||",
) -> str:
  """Puts a mark in the place of personal identifiers; each keyword is a mark, "" leaves that kind.

  Marks are not masked again. What stays, on purpose: private, local and documentation addresses
  (10.0.0.1, 2001:db8::1); four numbers with dots after "v", "version", "section", "=", "name-" or
  "name/" (a version that stands alone, such as 1.2.3.4, cannot be told from an address and goes);
  cards and accounts whose checksum is wrong or whose length their issuer or country does not use;
  phone numbers without "+", area code in brackets, North American dashes or a word such as "tel".
  FineWeb's marks: email="email@example.com", ip="22.214.171.124", the others "".

  Args:
    text: any.
    email: for what has an "@" between a name and a domain with a dot.
    ip: for IPv4 addresses that are global, and IPv6 addresses in 2000::/3 that are.
    phone: for +49 30 1234567, (212) 555-0123, 212-555-0123, 1-212-555-0123, tel. 0301234567.
    card: for payment cards: issuer, length and Luhn's sum agree.
    account: for IBANs: country, length and ISO 7064 sum agree.
  """
  if email and "@" in text:
    text = _mask_emails(text, email)
  patterns = (
    (account, _IBAN, _iban_end),
    (card, _CARD, _card_end),
    (ip, _IPV4, _ip_end),
    (ip, _IPV6, _ip_end),
    (phone, _ABROAD, re.Match.end),
    (phone, _AREA, re.Match.end),
    (phone, _DASHED, re.Match.end),
    (phone, _NUMBER, _called_end),
  )
  for _ in range(4):  # Two numbers in a row may hide each other until one of them is masked.
    before = text
    for mark, pattern, end in patterns:
      if mark:
        text = _mask(text, pattern, end, mark)
    if text == before:
      break
  return text


def _mask(
  text: str, pattern: re.Pattern[str], end: Callable[[re.Match[str]], int], mark: str
) -> str:
  """Replaces what matches `pattern` up to where `end` says.

  If `end` says 0, the match is left alone and another may start in it; if it says -n, before n not.
  """
  pieces, last, at = [], 0, 0
  while match := pattern.search(text, at):
    stop = end(match)
    at = abs(stop) or match.start() + 1
    if stop > 0:
      pieces += [text[last : match.start()], mark]
      last = stop
  return "".join((*pieces, text[last:])) if pieces else text


def _mask_emails(text: str, mark: str) -> str:
  pieces, last = [], 0
  at = text.find("@")
  while at >= 0:
    local = _LOCAL.search(text[max(at - 64, last) : at])
    name = local[0].lstrip(_NO_START) if local else ""
    host = _HOST.match(text, at + 1) if name else None
    if host:
      pieces += [text[last : at - len(name)], mark]
      last = host.end()
    at = text.find("@", at + 1)
  return "".join((*pieces, text[last:])) if pieces else text


def _ip_end(match: re.Match[str]) -> int:
  text, start = match.string, match.start()
  try:
    address = ipaddress.ip_address(match[0])
  except ValueError:
    return 0
  public = address.is_global and not address.is_multicast
  version = address.version == 4 and _VERSION.search(text, max(start - 12, 0), start)
  return match.end() if public and not version else 0


def _card_end(match: re.Match[str]) -> int:
  digits = re.sub(r"\D", "", match[0])
  return match.end() if _CARD_KINDS.fullmatch(digits) and luhn(digits) else 0


def _iban_end(match: re.Match[str]) -> int:
  length = _IBAN_LENGTHS.get(match[0][:2], 0)
  compact = match[0].replace(" ", "")[:length]
  if not length or len(compact) < length or not iban(compact):
    return 0
  end, left = match.start(), length  # What follows a number may look like a part of it.
  while left:
    left -= match.string[end] != " "
    end += 1
  return end if not match.string[end : end + 1].isalnum() else 0


def _called_end(match: re.Match[str]) -> int:
  start = match.start()
  called = _CALLED.search(match.string, max(start - 30, 0), start)
  return match.end() if called and not _DATE.fullmatch(match[0]) else -match.end()


def luhn(digits: str) -> bool:
  """Checks the last digit of a card number (ISO/IEC 7812)."""
  total = 0
  for i, digit in enumerate(reversed(digits)):
    value = int(digit) * (1 + i % 2)
    total += value - 9 * (value > 9)
  return total % 10 == 0


def iban(number: str) -> bool:
  """Checks the two digits after the country of an account number without blanks (ISO 7064)."""
  return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1
