"""A study's configuration as it can be shown to anybody: without secrets, and naming no account."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.config.study import Study

_LISTS = ("dids", "uris")
# Under which label a build is frozen changes nothing about it: its certificate stands for the frozen one too.
_NOT_TOLD = {"snapshot"}
_USER_OF_ADDRESS = re.compile(r"//[^/@\s]*@")
_DID = re.compile(r"did(?::|%3[Aa])[a-z]+(?::|%3[Aa])[A-Za-z0-9._:%-]*[A-Za-z0-9_-]")


def told_config(study: Study) -> dict[str, Any]:
    """Return all settings, those left out with their defaults; but not the label under which the build is frozen.

    What the environment filled in stands as `${NAME}`, a list of accounts or records as its length, and a DID anywhere
    else as `did:…`.
    """
    shown = _shown(study.model_dump(mode="json", exclude=_NOT_TOLD), study.filled_in, ())
    assert isinstance(shown, dict)  # noqa: S101  a model is a mapping
    return shown


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the identity of a configuration as it is told, in hex."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(value: Any, filled_in: Mapping[str, str], path: tuple[str, ...]) -> Any:
    name = ".".join(path)
    if name in filled_in:
        return filled_in[name]
    if isinstance(value, dict):
        is_inline = value.get("type") == "inline"
        return {
            _text(str(key)): _counted(item)
            if is_inline and key in _LISTS and item is not None
            else _shown(item, filled_in, (*path, str(key)))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_shown(item, filled_in, (*path, str(number))) for number, item in enumerate(value)]
    return _text(value) if isinstance(value, str) else value


def _counted(entries: list[str]) -> dict[str, Any]:
    # Without a digest: that of a list of one would tell whoever guesses right.
    return {"entries": len(entries)}


def _text(text: str) -> str:
    without_user = _USER_OF_ADDRESS.sub("//", text)
    return _DID.sub("did:…", without_user)
