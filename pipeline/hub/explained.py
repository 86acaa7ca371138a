"""What goes wrong between here and the hub, in one line each.

No message of the hub's client is passed on: they run over several lines, and hold addresses that
open what they are of.
"""

from collections.abc import Generator
from contextlib import contextmanager
from json import JSONDecodeError

from pipeline.errors import PipelineError

_ADVICE = {
    401: "it does not take the token of this machine: type hf auth login",
    403: "the token of this machine has no right to that: type hf auth login with one that has",
    404: "it is not there",
    409: "it was changed meanwhile, or is being changed: give the command again",
    412: "it was changed meanwhile: give the command again",
    429: "too many requests: wait some minutes, then give the command again",
}


@contextmanager
def explained(
    what: str, *, raises: type[PipelineError], only_there: bool = False
) -> Generator[None]:
    """Turn what the hub's client raises into a line about `what`: `model org/name`, say.

    Args:
        what: For people.
        raises: The line's class.
        only_there: Nothing here can stand for the hub: it is pushed to, or pulled from.
    """
    from huggingface_hub import errors

    out_of_reach = _out_of_reach(what, only_there=only_there)
    try:
        yield
    except errors.GatedRepoError as error:
        raise raises(
            f"{what} asks for its licence to be accepted on the hub: do so there, "
            "then type: hf auth login"
        ) from error
    except (
        errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError
    ) as error:  # fmt: skip
        raise raises(f"the hub has no {what} (or it is private: hf auth login)") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise raises(out_of_reach) from error
    except (network_error(), errors.HfHubHTTPError, ConnectionError, TimeoutError) as error:
        # Where files are kept, an answer may come without the hub's own class around it.
        response = getattr(error, "response", None)
        if response is None:
            raise raises(out_of_reach) from error
        advice = _ADVICE.get(response.status_code, "try again later")
        raise raises(f"the hub answered {response.status_code} for {what}: {advice}") from error


def _out_of_reach(what: str, *, only_there: bool) -> str:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    asked = ", as HF_HUB_OFFLINE is set" if offline else ""
    first = "unset HF_HUB_OFFLINE" if offline else "check the network"
    if only_there:
        return (
            f"the hub could not be reached for {what}{asked}: {first}, then give the command again"
        )
    return (
        f"the hub could not be reached for {what}{asked}, and it is not in the local cache: "
        f"{first}, or give a local path"
    )


@contextmanager
def transfer_explained(
    what: str, *, raises: type[PipelineError], only_there: bool = False
) -> Generator[None]:
    """The same of files that are sent or fetched: what is lost on the way is told, too."""
    from huggingface_hub import errors

    again = "give the command again, which goes on with what did not arrive"
    with explained(what, raises=raises, only_there=only_there):
        try:
            yield
        except RuntimeError as error:  # of a thread, which says of which file alone
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from error
            raise raises(f"the files of {what} did not all arrive: {again}") from error
        except JSONDecodeError as error:
            raise raises(f"the hub's answer for {what} cannot be read: try again later") from error
        except (errors.HFValidationError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError):
            raise
        except (
            ValueError
        ) as error:  # what the hub finds wrong with a card; or what was wrong, wrapped
            cause = error.__cause__
            if isinstance(cause, Exception) and not isinstance(cause, errors.BadRequestError):
                raise cause from error
            found = " ".join(str(error).split())
            raise raises(f"the hub does not take what is sent for {what}: {found}") from error
        except OSError as error:
            if error.errno is not None or isinstance(error, (network_error(), ConnectionError)):
                raise
            raise raises(f"a file of {what} did not arrive whole: {again}") from error


def is_out_of_reach(error: PipelineError) -> bool:
    """Whether a line of `explained` is about the way to the hub, not about what it answered."""
    from huggingface_hub import errors

    cause = error.__cause__
    if isinstance(cause, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return True
    lost = (network_error(), ConnectionError, TimeoutError)
    return isinstance(cause, lost) and not isinstance(cause, errors.HfHubHTTPError)


def network_error() -> type[Exception]:
    """The base of what the hub's HTTP library raises: httpx, or requests before the hub's 1.0."""
    from huggingface_hub import errors

    http_error = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
    # In requests it stands for answers alone, below a base that a refused connection shares.
    return [base for base in http_error.__mro__ if base.__module__ != "builtins"][-1]
