"""A package in a model repository on the Hugging Face hub: all its files in one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.evaluate import papers
from phipipe.hub import transfer, writing
from phipipe.hub.client import Repository
from phipipe.hub.exchange import client
from phipipe.hub.failures import NoRevision, NotThere
from phipipe.hub.published import Published
from phipipe.hub.writing import Shown
from phipipe.package.manifest import MAX_BYTES
from phipipe.publishing import eval_results
from phipipe.publishing.place import OnBytes, Seen
from phipipe.publishing.sealed import Item, Sealed, described, entries_of
from phipipe.recipe.addresses import MAIN, HubAddress

HUBS_OWN = (".gitattributes",)  # what a repository is made with


class HubPlace:
    """The repository at ``address``; ``private`` is how it is made where there is none, None where
    the user has not said."""

    def __init__(self, address: HubAddress, private: bool | None = None) -> None:
        self.address = address
        self._private = private
        self._repo = Repository("model", address.repo, address.revision)
        self._shown: Shown | None = None
        self._is_made = False  # whether there is such a repository
        self._old: frozenset[str] = frozenset()  # files of the package that is there

    def close(self) -> None:
        """As ``Place.close``: none is kept."""

    def look(self) -> Seen:
        """As ``Place.look``."""
        self._shown = None
        try:
            self._shown = writing.shown(self._repo)
            self._is_made = True
        except NoRevision:
            self._is_made = True
            self._check_visibility(self._of_main())
            return Seen()
        except NotThere:
            return Seen(private=self._private)
        self._check_visibility(self._shown)
        files = self._shown.files
        raw = self._content(papers.MANIFEST) if papers.MANIFEST in files else None
        found = described(raw) if raw is not None else None
        if raw is None or found is None:
            foreign = tuple(sorted(set(files) - {*HUBS_OWN}))
            return Seen(foreign=foreign, private=self._shown.private)
        paths = (path for path, _ in entries_of(found))
        listed = {*paths, papers.MANIFEST, *papers.ATTACHED, eval_results.PATH}
        self._old = frozenset(listed & set(files))
        return Seen(raw, str(found["digest"]), private=self._shown.private)

    def _of_main(self) -> Shown | None:
        """The repository on its main branch, if it has that."""
        try:
            return writing.shown(Repository("model", self._repo.name, MAIN))
        except NoRevision:
            return None

    def _check_visibility(self, there: Shown | None) -> None:
        """Refuse a repository that other people may see than the user asked for: also where
        nothing is to be sent, for "it is there" would say that all is as asked."""
        if there is None or self._private in (None, there.private):
            return
        how, asked = ("private", "--public") if there.private else ("public", "--private")
        raise SourceError(
            f"`{self._repo.name}` is {how}, and {asked} was asked for",
            hint=f"leave {asked} out, or change it in the repository's settings on the hub",
        )

    def _content(self, name: str) -> bytes | None:
        """A short file's content at the commit that is shown; None where it is long."""
        assert self._shown is not None
        file, repo = self._shown.files[name], self._at_commit
        if file.size > MAX_BYTES:
            return None
        with client() as pool:
            raw = transfer.span(pool, repo.address(name), file, file.size)
        digest = file.hash()
        digest.update(raw)
        if digest.hexdigest() != file.digest:
            raise SourceError(
                f"`{name}` of `{repo}` is not what was published: it has another {file.algorithm}",
                hint=transfer.NO_PROXY,
            )
        return raw

    @property
    def _at_commit(self) -> Repository:
        assert self._shown is not None
        return Repository("model", self._repo.name, self._shown.commit)

    def missing(self, package: Sealed) -> tuple[Item, ...]:
        """As ``Place.missing``."""
        files = self._shown.files if self._shown else {}
        return tuple(item for item in package.items if not _same(item, files.get(item.path)))

    def prepare(self) -> None:
        """See whether anything may be sent, before it is.

        Raises:
            SourceError: there is no token; or the repository has to be made, and nobody said for
                whom.
        """
        writing.need_token(self._repo)
        if len(self._repo.revision) == 40 and self._repo.revision.isalnum():
            raise SourceError(
                f"`{self.address}` names a commit, which never changes", hint="name a branch"
            )
        if not self._is_made and self._private is None:
            raise SourceError(
                f"there is no repository `{self._repo.name}` yet: who may see it?",
                hint="--private: you and those you let; --public: everybody",
            )

    def send(self, package: Sealed, missing: Sequence[Item], on_bytes: OnBytes) -> None:
        """As ``Place.send``: what is kept apart first, then one commit."""
        if not self._is_made:
            writing.create(self._repo, private=bool(self._private))
        if self._shown is None:
            self._begin()
        assert self._shown is not None
        results = eval_results.text(package.manifest, self._repo.page)
        contents: dict[str, Path | bytes] = {item.path: item.file for item in missing}
        if results is not None:
            contents[eval_results.PATH] = results.encode()
        kept = {item.path for item in package.items} | set(contents)
        added = writing.additions(contents)
        writing.bring(self._repo, added)
        on_bytes(sum(item.size for item in missing))
        title = f"{package.manifest.name} {package.digest[:12]}, by phipipe"
        removed = sorted(self._old - kept)
        parent = self._shown.commit
        writing.commit(self._repo, added, removed, parent, title, lambda: self._shows(package))
        if not self._shows(package):
            raise SourceError(
                f"`{self.address}` does not show what was sent to it: {self._first(package)}",
                hint="push again; if it stays so, look at the repository's own settings",
            )

    def _begin(self) -> None:
        """See the repository as it was just made, and make the branch where it has none."""
        try:
            self._shown = writing.shown(self._repo)
        except NoRevision:
            writing.branch(self._repo)
            self._shown = writing.shown(self._repo)
        except NotThere:
            raise SourceError(
                f"the hub made `{self._repo.name}` and does not show it", hint="push again"
            ) from None
        self._check_visibility(self._shown)  # somebody else may have made it just now

    def _shows(self, package: Sealed) -> bool:
        self._shown = writing.shown(self._repo)
        return not self.missing(package)

    def _first(self, package: Sealed) -> str:
        return f"`{self.missing(package)[0].path}` has another content, or is missing"

    def tidy(self, package: Sealed) -> None:
        """As ``Place.tidy``: a commit leaves nothing undone."""

    def described(self) -> Mapping[str, Published]:
        """As ``Place.described``."""
        return self._shown.files if self._shown else {}

    def fetch(self, files: Sequence[Published], folder: Path, on_bytes: OnBytes) -> None:
        """As ``Place.fetch``."""
        repo = self._at_commit
        jobs = [(repo.address(file.name), file, folder / file.name) for file in files]
        transfer.fetch_all(jobs, on_bytes)


def _same(item: Item, there: Published | None) -> bool:
    """Whether ``there`` is ``item``, by the hash that the hub publishes."""
    if there is None or there.size != item.size:
        return False
    if there.algorithm == "sha256":
        return there.digest == item.sha256
    return there.matches(item.file)
