"""What was measured of a package on its device: by phipipe there, or by another tool."""

from __future__ import annotations

from pathlib import Path

from phipipe.api import workplace
from phipipe.api.results import Result
from phipipe.api.workplace import Note, UserPath, path_of
from phipipe.board import entry, file, printed
from phipipe.board.entry import Entry
from phipipe.evaluate import printed_speeds
from phipipe.execution.results import Outcome
from phipipe.files.user_paths import Kind
from phipipe.package.manifest import read_manifest
from phipipe.signing import opening
from phipipe.store import files, free_space, refusals
from phipipe.visible import visible


class Measurement(Result):
    """What was measured of a package on its device."""

    def __init__(self, folder: Path, outcome: Outcome) -> None:
        """Of the package in ``folder``."""
        super().__init__(outcome)
        self._folder = folder

    @property
    def entry(self) -> Entry:
        """It as a board has it."""
        return entry.of_measurement(read_manifest(self._folder), self.check().outcome)

    def check(self) -> Measurement:
        """This measurement, if nothing failed.

        Raises:
            PhipipeError: why it failed.
        """
        super().check()
        return self

    def report(self) -> str:
        """The report that ``phipipe compare`` and ``Board`` read, as JSON."""
        return file.dump([self.entry])

    def write(self, path: UserPath) -> Path:
        """Write the report into the file ``path``.

        Raises:
            StoreError: it cannot be written.
        """
        return _write(self.report(), path)


class ImportedSpeeds:
    """Speeds of a package that another tool printed on the device.

    Attributes:
        entry: they as a board has them; all that the tool did not measure is the build's.
        tool: which tool.
    """

    def __init__(
        self,
        folder: Path,
        path: UserPath,
        machine: str | None = None,
        on_note: Note | None = None,
    ) -> None:
        """Of the package in ``folder``, from the file ``path``, on ``machine``; ``on_note`` gets
        what is doubtful about the package.

        Raises:
            SourceError: as ``Package.import_speeds``.
        """
        manifest = opening.open_(folder, on_note or workplace.warned)
        target = path_of(path, Kind.FILE, "the file")
        told = printed_speeds.read(target, manifest.speed.prompt_tokens)
        self.tool = told.tool
        self.entry = printed.of_printed(manifest, told, machine)

    def report(self) -> str:
        """The report that ``phipipe compare`` and ``Board`` read, as JSON."""
        return file.dump([self.entry])

    def write(self, path: UserPath) -> Path:
        """Write the report into the file ``path``.

        Raises:
            StoreError: it cannot be written.
        """
        return _write(self.report(), path)

    def __repr__(self) -> str:
        return f"<ImportedSpeeds of {self.entry.name}: {visible(self.tool)}>"


def _write(report: str, path: UserPath) -> Path:
    target = path_of(path, Kind.NEW_FILE, "the report")
    with refusals.guard(target.parent, remedy=free_space.KEEP_OUT):
        files.write(target, report.encode())
    return target
