"""Seals: what a stored file is, and the SHA-256 of its bytes, inside the file itself. Imports no torch.

    {"depthscope": "shard", "experiment": "sweep", "unit": 3, "settings": "9f2c…", "sha256": "51ab…"}

The seal is part of the file (an entry of JSON, metadata of Parquet, a comment of HTML), so a file and its checksum appear and
disappear together. The hash is that of the whole file with 64 zeros in its place: any changed, lost or added byte is noticed,
and so is a file that was put in another's place. A seal protects against damage and mistakes, not against somebody who writes
another valid seal: it is no signature.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

from depthscope.errors import DepthscopeError

BLANK = "0" * 64
OPENING = b'{"depthscope": "'
BEFORE_HASH = b', "sha256": "'
RUN, SHARD, TABLE, STAGES, PAGE, LENS = "run", "shard", "table", "stages", "page", "lens"


class SealError(DepthscopeError):
    """A file is not what it was when it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What a file is. `settings` is the fingerprint of the settings that it was made with."""

    kind: str
    name: str | None = None
    """Of a table."""
    experiment: str | None = None
    unit: int | None = None
    settings: str | None = None

    @property
    def blank(self) -> str:
        """The seal's text before the file's hash is known, which `sealed` puts in."""
        about = {"depthscope": self.kind} | {key: value for key, value in asdict(self).items() if value is not None}
        del about["kind"]
        return json.dumps({**about, "sha256": BLANK})

    def __str__(self) -> str:
        unit = "" if self.unit is None else f" of unit {self.unit}"
        named = " ".join(filter(None, (self.kind, self.name or self.experiment)))
        return f"{named}{unit}"


def sealed(content: bytes) -> bytes:
    """A file's bytes with their hash in the last seal, which is blank."""
    place = content.rfind(BEFORE_HASH) + len(BEFORE_HASH)
    return with_hash(content, place)


def with_hash(content: bytes, place: int) -> bytes:
    """A file's bytes with their hash at `place`, where 64 zeros are."""
    assert content[place : place + len(BLANK)] == BLANK.encode(), "expected a blank seal"
    return content[:place] + hashlib.sha256(content).hexdigest().encode() + content[place + len(BLANK) :]


def require_hash(content: bytes, place: int) -> None:
    """Raise SealError unless the hash at `place` is that of the file's other bytes."""
    stop, view = place + len(BLANK), memoryview(content)
    digest = hashlib.sha256(view[:place])
    digest.update(BLANK.encode())
    digest.update(view[stop:])
    if digest.hexdigest().encode() != content[place:stop]:
        raise SealError("its content does not match its checksum")


def read_seal(content: bytes) -> Seal | None:
    """The verified seal of a file; None if it has none. Raises SealError if the file was changed after it was written."""
    place = content.rfind(BEFORE_HASH)
    start = content.rfind(OPENING, 0, max(place, 0))
    if start < 0:
        return None
    place += len(BEFORE_HASH)
    require_hash(content, place)
    try:
        about = json.loads(content[start : place + len(BLANK) + 2])
        del about["sha256"]
        seal = Seal(kind=about.pop("depthscope"), **about)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SealError("its seal cannot be read") from error
    return seal


def safetensors_header(content: bytes) -> bytes:
    """The JSON header of a safetensors file."""
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def hash_in_safetensors(content: bytes) -> int:
    """The place of the hash in a safetensors file, which is an entry of its metadata. Raises SealError if there is none.

    Quotes in other entries are escaped, so nothing else in the header matches.
    """
    mark = b'"sha256":"'
    place = safetensors_header(content).find(mark)
    if place < 0:
        raise SealError("it has no checksum")
    return 8 + place + len(mark)
