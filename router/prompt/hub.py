"""Model files by hub id: fetched once with `huggingface_hub`, which keeps them in its cache and follows HF_* variables.

A hub that can't be reached is no obstacle where the files are in the cache already.
"""

from __future__ import annotations

from pathlib import Path

FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.json", "params.json", "*.jinja")


class ModelFilesError(Exception):
    """A model's files are missing or wrong. The message names the file and the fix."""


class HubError(ModelFilesError):
    """Files can't be fetched. `passing`: trying again later may help."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


def fetch(model_id: str, *, revision: str | None, token: str | None, cache_dir: str | Path | None) -> Path:
    """The directory with the model's files (blocking, up to minutes: run it off the event loop). Raises HubError.

    `token` None: the one of HF_TOKEN or of the client's own login, if any.
    """
    if model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        raise HubError(
            f"{model_id}: no such directory. Give a directory with tokenizer.json, or a hub id", passing=False
        )
    from huggingface_hub import snapshot_download  # takes a second to import: only where it is needed

    try:
        return Path(
            snapshot_download(
                model_id, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=list(FILES), max_workers=2
            )
        )
    except Exception as error:  # the client raises many kinds, and those of the HTTP library beneath it
        why, passing = _explained(error, model_id, revision)
        raise HubError(f"{model_id}: is no directory, and {why}", passing=passing) from error


def _explained(error: Exception, model_id: str, revision: str | None) -> tuple[str, bool]:
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE and isinstance(error, errors.LocalEntryNotFoundError):
        why = "it is not in the hub client's cache, and HF_HUB_OFFLINE forbids fetching it"
        return f"{why}: fill the cache, or give a local directory", False
    if isinstance(error, errors.GatedRepoError):
        return "the hub wants its terms accepted: accept them on the model's page, and set models[].token_env", False
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it: check models[].revision", False
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {model_id}, or shows it only with a token: check models[].files and token_env", False
    if isinstance(error, errors.HFValidationError):
        return f"it is no hub id either ({error}): check models[].files", False
    status = _status(error)
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return f"the hub answered HTTP {status}: check models[].files, revision and token_env", False
    what = f"answered HTTP {status}" if status is not None else f"can't be reached ({type(error).__name__})"
    return f"the hub {what} and the files are not in its cache: trying again; or give a local directory", True


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error, or one that it was raised from, tells of."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None
