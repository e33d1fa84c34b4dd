"""What a failed request to a bucket means: what may pass, and what the user has to set right."""

from __future__ import annotations

from phipipe.errors import SourceError
from phipipe.hub.failures import GO_ON, Fault
from phipipe.recipe.addresses import BucketAddress
from phipipe.store import shared

ATTEMPTS = 3  # each of which obstore makes several times


def meaning_of(error: Exception, address: BucketAddress) -> Exception:
    """The ``Fault`` or the error for users that obstore's ``error`` stands for."""
    from phipipe.store import bucket

    if bucket.lacks_credentials(error):
        return unusable(error, address)
    if bucket.nobody_there(error):
        return Fault(
            shared.describe(error),
            attempts=ATTEMPTS,
            hint="check AWS_ENDPOINT_URL, AWS_REGION and the network",
        )
    words = shared.describe(error)
    if "NoSuchBucket" in str(error):
        words = "no such bucket"
    elif type(error).__name__ == "GenericError":
        return Fault(words, attempts=ATTEMPTS)
    return SourceError(
        f"`{address}`: {words}",
        hint="check the address, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and what the "
        "key may do",
    )


def unusable(error: Exception, address: BucketAddress) -> SourceError:
    """That the environment leads to no bucket: without credentials, or to an address that is none.
    Asking again cannot help."""
    from phipipe.store import bucket

    hint = f"check AWS_ENDPOINT_URL and AWS_REGION; then {GO_ON}"
    if bucket.lacks_credentials(error):
        hint = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles in ~/.aws are not read), or "
            "AWS_SKIP_SIGNATURE=true for a bucket that everybody may read"
        )
    return SourceError(f"`{address}` cannot be used: {shared.describe(error)}", hint=hint)
