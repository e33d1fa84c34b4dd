"""What a finished package says of itself."""

from __future__ import annotations

from pathlib import Path

from phipipe.api import pages
from phipipe.api.figures import Figures
from phipipe.package import package as packages
from phipipe.package.manifest import Finding
from phipipe.package.manifest_schema import Manifest
from phipipe.steps import Json
from phipipe.visible import visible
from phipipe.words import counted, human


class Said:
    """What the package in the folder ``path`` says of itself."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """As ``Package.open``, which looks at the files first."""
        self.path, self._manifest = path, manifest
        self.name, self.device, self.unit = manifest.name, manifest.device.title, manifest.api
        self.backend, self.precision = manifest.backend, manifest.precision
        self.scheme = manifest.scheme
        self._figures: Figures | None = None

    @property
    def figures(self) -> Figures:
        """What was measured when it was built."""
        if self._figures is None:
            self._figures = Figures.of_manifest(self._manifest)
        return self._figures

    @property
    def manifest(self) -> Json:
        """All that the package says of itself: the content of ``manifest.json``."""
        return self._manifest.as_json()

    @property
    def card(self) -> str:
        """Its model card, in Markdown."""
        return (self.path / packages.CARD).read_text("utf-8", errors="replace")

    @property
    def size_bytes(self) -> int:
        """All its files together."""
        return sum(one.size for one in self._manifest.files)

    def verify(self) -> list[Finding]:
        """As the function ``verify``: everything by which the package has changed by now."""
        return packages.verify(self.path)

    def __repr__(self) -> str:
        return f"<Package {self.name}: {self.backend} {self.precision} for {self.device}>"

    def __str__(self) -> str:
        return visible(f"{self._heading()}\n{self.figures}\n\npackage  {self.path}")

    def _heading(self) -> str:
        manifest = self._manifest
        return (
            f"{self.name}: {manifest.source.title} → {self.precision} for {self.device}, "
            f"{self.backend}; {counted(len(manifest.files), 'file')}, {human(self.size_bytes)}"
        )

    def _repr_html_(self) -> str:
        head = pages.paragraph(self._heading())
        return head + self.figures._repr_html_() + pages.paragraph(str(self.path))
