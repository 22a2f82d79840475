"""Finds the keys and passwords among the environment's variables, by their values before their names.

No list of names is complete (PGPASSWORD, MYSQL_PWD, GITHUB_PAT, a webhook, a DSN), so a variable of any name counts if
its value looks random or carries credentials. Ordinary values do not, whatever their name: hiding `true`, a path or a
word in every message would make messages unreadable and reject harmless configs.

detect-secrets and zxcvbn were considered: the first judges source code and has no function for a single value, the
second calls paths and model names strong passwords.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

LEAST = 12
"""Minimum length of a value that counts by its look alone: shorter ones match by chance."""

LEAST_NAMED = 6
"""Minimum length of the value of a variable with a telling name, if it mixes letters with digits or symbols."""

LEAST_PASSWORD = 8
"""Minimum length of the value of a variable that is named like a password, if it is a word or a number."""

_LONGEST = 100_000  # characters of a value that are searched: the kernel allows 128 KB

_NAMES = re.compile(
    r"(?:^|_)(?:(?:API|ACCESS|SECRET|PRIVATE|AUTH|SSH|MASTER)?KEYS?|[^\W_]*TOKENS?|[^\W_]*SECRETS?|CREDENTIALS?|CREDS?|PAT|PSK|PW"
    r"|[^\W_]*(?<!COM)(?<!BY)PASS(?:W(?:OR)?D|PHRASE|CODE|W)?|[^\W_]*PWD|AUTH|AUTHORIZATION|BEARER|COOKIES?|DSN|WEBHOOK|JWT|SAS"
    r"|PIN|SALT|MNEMONIC|SEED_PHRASE|CONN(?:ECTION)?_?STR(?:ING)?|SESSION|SIGNATURE|T?OTP)(?=_|\d*$)",
    re.ASCII,
)
"""Words in a variable's name that announce a key, alone or as the end of a compound such as PGPASSWORD."""

_PASSWORD_NAMES = re.compile(r"(?:^|_)[^\W_]*(?:PASS(?:W(?:OR)?D|PHRASE|CODE|W)?|PWD|PW)(?=_|\d*$)", re.ASCII)
_WELL_KNOWN = {
    "postgres", "password", "passwd", "changeme", "secret", "default", "example", "localhost", "administrator",
    "username", "anonymous", "development", "testing", "disabled", "required", "optional", "prompt",
}  # fmt: skip
"""Values under such names that are no secret: defaults and switches. Hiding them would hide ordinary words."""

_ORDINARY_NAMES = re.compile(
    r"PATH|HOME|PWD|OLDPWD|SHELL|SHLVL|_|USER|USERNAME|LOGNAME|HOST|HOSTNAME|MAIL|LANG|LANGUAGE|TZ|COLORTERM|COLUMNS"
    r"|LINES|EDITOR|VISUAL|PAGER|LS_COLORS|LSCOLORS|PS[0-4]|PROMPT_COMMAND|BASH_FUNC_.*|BASHOPTS|SHELLOPTS|IFS|DISPLAY"
    r"|WAYLAND_DISPLAY|TMPDIR|TMP|TEMP|SSH_(?:CLIENT|CONNECTION|TTY|AUTH_SOCK|AGENT_PID)|RANK|LOCAL_RANK|WORLD_SIZE"
    r"|DBUS_SESSION_BUS_ADDRESS|XDG_\w+|LGCLIP_\w+|SHA|COMMIT|REVISION",
    re.ASCII | re.IGNORECASE,
)
"""Variables whose values are ordinary by their purpose, however they look; credentials in an address still count."""

_ORDINARY_FAMILIES = re.compile(
    r"(?:LC|LESS|TERM|GREP|DBUS|PYTEST|PYTHON|VIRTUAL_ENV|CONDA|PYENV|UV|OMP|MKL|OPENBLAS|KMP|CUDA|NVIDIA|NCCL|NVPL"
    r"|TORCH|PYTORCH|TORCHINDUCTOR|HYDRA|HF|TRANSFORMERS|TOKENIZERS|SLURM|MASTER|NODE|WANDB|GIT|KUBERNETES)_?\w*"
    r"|\w+_(?:HOME|HOSTNAME|PATH|PATHS|DIR|SHA|SHA256|COMMIT|REVISION|REF|DIGEST|CHECKSUM|HASH|VERSION|ID|UUID|NAME)",
    re.ASCII | re.IGNORECASE,
)
"""Families of such variables, unless a name among them announces a key, as WANDB_API_KEY does."""

PUBLIC = "LGCLIP_PUBLIC"
"""Names variables whose values may be shown although they look like keys, as in `BUILD_TAG,TRACE`."""

KEY_FORMAT = re.compile(
    r"(?<![\w-])(?:sk-(?=[\w-]*\d)[\w-]{20,}|[sr]k_(?:live|test)_\w{10,}|xai-\w{20,}|gsk_\w{20,}|hf_[A-Za-z0-9]{20,}"
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abposr]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)
"""Forms of keys that their services announce by a prefix."""

_CREDENTIALS = re.compile(r"[a-zA-Z][\w+.-]{0,40}://(?:[^\s/?#@:]*:)?([^\s/?#@]+)@")
_URL = re.compile(r"[a-zA-Z][\w+.-]{0,40}://")
_HEX = re.compile(r"[0-9a-f]+|[0-9A-F]+")
_SYMBOLS = re.compile(r"[!$%^&*#~|?<>]")
_NUMBERED = re.compile(r"(?:[A-Z]?[a-z]+|[A-Z]+)\d{0,8}|[A-Za-z]{1,2}\d{1,14}|\d+[A-Za-z]{1,4}")
_PIECES = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_RARE = {
    "a": "joq", "b": "ghjknqvwxz", "c": "bgjnqwxz", "d": "hjkqwz", "e": "jkz", "f": "bghjknqvwxz", "g": "djkqvwxyz",
    "h": "bcdfghjklnpqvwxz", "i": "hjquwy", "j": "bcdfghijklmnpqrstvwxyz", "k": "bcdfghjkmpqrtuvxyz", "l": "ghjqwxz",
    "m": "dfghjkqwxz", "n": "jqwxz", "o": "hjqyz", "p": "bjknqvwxz", "q": "abcdefghijklmnopqstvwxyz", "r": "hjqwxz",
    "s": "jxz", "t": "jkqx", "u": "hjkoquvwxyz", "v": "bcfghjklmnpqrtuvwxyz", "w": "bcdfgjklmpqtuvwxyz",
    "x": "bdfghjklmnoqruvwxyz", "y": "bdfghjkqruvwxyz", "z": "bcdfghjklmnopqrstuvwxyz",
}  # fmt: skip
"""For each letter, those that rarely follow it: pairs that are less than 0.03% of those in 38,000 words of the
documentation and the source of scientific packages. Half of the pairs of random letters are among them."""


def secret_values() -> dict[str, str]:
    """Returns the secrets of the environment: each value or part of one, with its variable's name.

    The longest come first: if one holds another, hiding the shorter one would leave the rest of the longer one visible.
    """
    return dict(_secrets_of(tuple(os.environ.items())))


def is_secret_variable(name: str) -> bool:
    """Checks whether a variable is set, and its value or a part of it must not be shown."""
    return name in os.environ and any(_parts_to_hide(name, os.environ[name]))


def names_a_secret(name: str) -> bool:
    """Checks whether a variable's name announces a key or a password."""
    return bool(_NAMES.search(name.upper())) and not _ORDINARY_NAMES.fullmatch(name)


def _is_ordinary(name: str) -> bool:
    """Checks whether a variable is ordinary by its name."""
    if name in re.split(r"[\s,]+", os.environ.get(PUBLIC, "")):
        return True
    return bool(_ORDINARY_NAMES.fullmatch(name)) or (
        bool(_ORDINARY_FAMILIES.fullmatch(name)) and not names_a_secret(name)
    )


def hidden(text: str) -> str:
    """Returns a text with `***` in place of the environment's keys and passwords."""
    for spelling in _spellings_of(tuple(os.environ.items())):
        if spelling in text:
            text = text.replace(spelling, "***")
    return text


def looks_random(text: str) -> bool:
    """Checks whether a text looks generated: no word, name, number, version, date, path or address of such.

    Args:
        text: A text without white space.
    """
    if len(text) < LEAST:
        return False
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", text) if part]
    if not parts:
        return False
    # As generators of passwords mix them: few words are left between the symbols.
    if _kinds(text) == 4 and _SYMBOLS.search(text) and not _is_wordy("".join(parts), _words_in(text, 4)):
        return True
    odd = [part for part in parts if not _is_plain(part)]
    # One odd part of a few letters is a name such as `b8a`; a key has many, or a long one.
    return sum(map(len, odd)) >= LEAST or any(len(part) >= 10 and _kinds(part) >= 2 for part in odd)


def _is_plain(part: str) -> bool:
    """Checks whether a run of letters and digits is a word, a number, or words and numbers in a row."""
    if len(part) <= 4 or part.isdigit():
        return len(part) <= 20
    if _HEX.fullmatch(part) and len(part) >= 16:
        return False
    if _NUMBERED.fullmatch(part):
        return _is_word(part.rstrip("0123456789"))
    # Dates such as 20261129T142026Z.
    if len(part) <= 20 and sum(map(str.isalpha, part)) <= 2:
        return True
    # CamelCase and names such as `resnet50x4`: words make up most of it. In a key, case and digits change too often.
    return _is_wordy(part, _words_in(part, 3 if len(part) < 10 or part.isalpha() else 4))


def _words_in(text: str, least: int) -> list[str]:
    """Returns the words of a minimum length in a text, as CamelCase and digits separate them."""
    return [piece for piece in _PIECES.findall(text) if len(piece) >= least and piece.isalpha() and _is_word(piece)]


def _is_wordy(text: str, words: Sequence[str]) -> bool:
    return 2 * sum(map(len, words)) >= len(text)


def _is_word(letters: str) -> bool:
    """Checks whether letters follow each other as in English words and names."""
    letters = letters.lower()
    rare = sum(second in _RARE.get(first, "") for first, second in pairwise(letters))
    if len(letters) <= 5:
        return rare <= len(letters) // 4
    return len(letters) <= 24 and rare <= max(1, len(letters) // 9)


def _kinds(text: str) -> int:
    """Returns the number of kinds of characters in a text: lower case, upper case, digits, others."""
    tests = (str.islower, str.isupper, str.isdigit, lambda letter: not letter.isalnum())
    return sum(any(map(test, text)) for test in tests)


def _is_place(value: str) -> bool:
    """Checks whether a value is a path, or several; a random one counts if it exists."""
    if not value.startswith(("/", "~", "./", "../")):
        return False
    return all(not looks_random(path) or Path(path).expanduser().exists() for path in value.split(os.pathsep) if path)


def _parts_to_hide(name: str, value: str) -> Iterator[str]:
    """Yields a variable's value, or the parts of it, that must not be shown."""
    value = value.strip()
    for password in _CREDENTIALS.findall(value):
        yield password
        yield unquote(password)
    if _CREDENTIALS.search(value) or KEY_FORMAT.search(value):
        yield value
    if _is_ordinary(name) or len(value) > _LONGEST:
        return
    if names_a_secret(name):
        yield from _parts_of_named(name, value)
    # Each word for itself: a message may hold one line of a private key, or one value of a JSON text.
    for word in re.split(r"[\s\"'{}\[\](),;]+", value):
        yield from _parts_of_word(word, is_named=names_a_secret(name))


def _parts_of_named(name: str, value: str) -> Iterator[str]:
    """Yields the value of a variable with a telling name, if it is long enough and no path or plain address."""
    if _is_place(value) or _is_plain_address(value) or value.lower() in _WELL_KNOWN:
        return
    # A short one counts if it is no word or number, which other texts contain by chance; a password more readily.
    is_mixed = _kinds(value) >= 2 and not value.istitle() and " " not in value
    least = LEAST
    if is_mixed:
        least = LEAST_NAMED
    elif _PASSWORD_NAMES.search(name.upper()):
        least = LEAST_PASSWORD
    if len(value) >= least:
        yield value


def _parts_of_word(word: str, *, is_named: bool) -> Iterator[str]:
    if len(word) < LEAST or _is_place(word):
        return
    if not _URL.match(word):
        # NAME=value pairs, as connection strings have them.
        key, _, value = word.partition("=")
        if value.strip("=") and names_a_secret(_snake(key)):
            yield from _parts_of_named(_snake(key), value)
        if looks_random(word) or (KEY_FORMAT.search(word) and is_named):
            yield word
        return
    try:
        address = urlsplit(word)
    except ValueError:  # brackets that hold no address
        yield word
        return
    tokens = [*address.path.split("/"), *(text for _, text in parse_qsl(address.query)), address.fragment]
    tokens += (address.hostname or "").split(".")
    random = [token for token in tokens if looks_random(token)]
    for key, text in parse_qsl(address.query):
        if names_a_secret(_snake(key)):
            random.append(text)
    if random:
        yield word
        yield from random


def _is_plain_address(value: str) -> bool:
    return bool(_URL.match(value)) and not any(_parts_of_word(value, is_named=False))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper().replace("-", "_")


@lru_cache(maxsize=8)
def _secrets_of(environment: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    secrets: dict[str, str] = {}
    for name, value in environment:
        for part in _parts_to_hide(name, value):
            if len(part) >= LEAST_NAMED:
                secrets.setdefault(part, name)
    return tuple(sorted(secrets.items(), key=lambda entry: (-len(entry[0]), entry[0])))


@lru_cache(maxsize=8)
def _spellings_of(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Returns the secrets as they are, and as JSON and addresses spell them; the longest first."""
    spellings: dict[str, None] = {}
    for part, _ in _secrets_of(environment):
        as_json = (json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1])
        as_address = (quote(part, errors="replace"), quote(part, safe="", errors="replace"))
        on_one_line = " ".join(part.split())
        spellings |= dict.fromkeys((part, *as_json, repr(part)[1:-1], *as_address, on_one_line))
    return tuple(sorted(spellings, key=len, reverse=True))
