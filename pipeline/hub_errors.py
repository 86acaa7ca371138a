"""What goes wrong between here and the hub, one line each."""

from collections.abc import Generator
from contextlib import contextmanager

from pipeline.errors import PipelineError


@contextmanager
def explained(what: str, *, raises: type[PipelineError]) -> Generator[None]:
    """Turn what the hub's client raises into a line about `what`: `model org/name`, say.

    Raises:
        PipelineError: of the type `raises`.
    """
    from huggingface_hub import errors

    # The base of what the hub's HTTP library raises, whichever library that is.
    network_error = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
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
        raise raises(_out_of_reach(what)) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise raises(f"the hub answered {status} for {what}: try again later") from error
    except (network_error, ConnectionError, TimeoutError) as error:
        raise raises(_out_of_reach(what)) from error


def _out_of_reach(what: str) -> str:
    return (
        f"the hub could not be reached for {what}, and it is not in the local cache: check the "
        "network, or give a local path"
    )
