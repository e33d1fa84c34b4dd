"""What the user writes: frozen models, and ``load``, which reports every problem at once with its
place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from phipipe import metrics
from phipipe.errors import RecipeError, TargetError
from phipipe.files import file_names, user_paths
from phipipe.recipe import overlay
from phipipe.recipe.document import (
    MAX_PROBLEMS,
    At,
    Document,
    Problem,
    Where,
    complaints,
    gone,
    near,
    parse,
    read,
    shorten,
)
from phipipe.recipe.variants import BACKEND, VARIANT_KEYS, lay

Precision = Literal["int4", "int8", "fp16", "fp32"]
COMMIT = r"^[0-9a-f]{40}$"
REPO = r"^[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*$"
SLUG = r"^[a-z0-9][a-z0-9._-]{0,79}$"
MAX_VARIANTS = 100


# WikiText-2 (raw), what models of the hub are judged on where a recipe names no text. The commit is
# the one that public projects pin (evaluation scripts, the `datasets` library's own records of
# checksums).
WIKITEXT = {"repo": "Salesforce/wikitext", "revision": "b08601e04326c79dfdd32d625aee71d232d685c3"}
WIKITEXT_FILE = "wikitext-2-raw-v1/{}-00000-of-00001.parquet"


class Model(BaseModel):
    """Frozen; an unknown key is an error; nothing is coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sparse(Model):
    """Keys are optional, but one that is written has a value: `path:` alone is a line that was not
    finished."""

    @model_validator(mode="before")
    @classmethod
    def _written(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if data[key] is None and key in cls.model_fields:
                raise At(key, f"`{key}` has no value; write one, or leave the key out")
        return data


def _exactly_one(value: BaseModel, names: Sequence[str]) -> None:
    given = [name for name in names if getattr(value, name) is not None]
    if len(given) != 1:
        said = " and ".join(f"`{name}`" for name in given) or "none"
        raise ValueError(
            f"give exactly one of {', '.join(f'`{n}`' for n in names)}; there is {said}"
        )


class Dataset(Model):
    """A text file, or a Parquet file with a column ``text``, in a data set on the Hugging Face hub,
    pinned."""

    repo: str = Field(pattern=REPO, description="OWNER/NAME of the data set.")
    revision: str = Field(pattern=COMMIT, description="The 40-hex commit; never a branch.")
    file: str = Field(min_length=1, description="The file's path inside it, `/` between folders.")

    @model_validator(mode="after")
    def _inside(self) -> Dataset:
        if "\\" in self.file or any(part in ("", ".", "..") for part in self.file.split("/")):
            raise At(
                "file",
                f"`{shorten(self.file)}` is no path inside a data set, such as `data/test.txt`",
            )
        return self


class Source(Sparse):
    """The original model: one of a hub repository at a commit, a local folder, or an embedded
    model."""

    repo: str | None = Field(None, pattern=REPO, description="OWNER/NAME on the Hugging Face hub.")
    revision: str | None = Field(
        None, pattern=COMMIT, description="The 40-hex commit of `repo`; never a branch."
    )
    path: str | None = Field(
        None, min_length=1, description="A local checkpoint; relative to the recipe's folder."
    )
    builtin: Literal["tiny-phi3"] | None = Field(None, description="A model that phipipe carries.")

    @model_validator(mode="after")
    def _one(self) -> Source:
        _exactly_one(self, ("repo", "path", "builtin"))
        if self.repo is not None and self.revision is None:
            raise ValueError(
                "`revision` is missing: a recipe pins the 40-hex commit to build from, never a "
                "branch"
            )
        if self.repo is None and self.revision is not None:
            raise At("revision", "`revision` is the commit of a `repo`, and there is none")
        return self


class Text(Sparse):
    """A text: one of these."""

    builtin: Literal["stories"] | None = Field(None, description="A text that phipipe carries.")
    file: str | None = Field(
        None, min_length=1, description="UTF-8 or Parquet; relative to the recipe's folder."
    )
    dataset: Dataset | None = Field(None, description="A file on the hub.")

    @model_validator(mode="after")
    def _one(self) -> Text:
        _exactly_one(self, ("builtin", "file", "dataset"))
        return self


class Calibrate(Sparse):
    """What data-aware quantization learns from (`phipipe backends NAME` says which options do)."""

    text: Text | None = Field(
        None, description="Never the evaluation text. Embedded models have one of their own."
    )
    tokens: int = Field(
        16_384, ge=256, le=10_000_000, description="How many tokens of the text are used."
    )
    window: int = Field(512, ge=64, le=8192, description="Tokens per sample.")

    @model_validator(mode="after")
    def _fits(self) -> Calibrate:
        if self.window > self.tokens:
            at = "window" if "window" in self.model_fields_set else "tokens"
            raise At(at, f"`window` ({self.window}) is longer than `tokens` ({self.tokens})")
        return self


class Gate(Sparse):
    """Limits of one metric; the build fails outside of them."""

    min: float | None = Field(None, description="The lowest value that passes.")
    max: float | None = Field(None, description="The highest value that passes.")

    @model_validator(mode="after")
    def _sensible(self) -> Gate:
        if self.min is None and self.max is None:
            raise ValueError("a gate has `min`, `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"no value passes: `min` {self.min:g} is above `max` {self.max:g}")
        return self


class Evaluate(Model):
    """How fidelity is measured, and what must hold."""

    text: Text = Field(
        Text(builtin="stories"),
        description="The evaluation text; without it WikiText-2's test split for a model of the "
        "hub, else the stories.",
    )
    tokens: int = Field(
        4096, ge=256, le=10_000_000, description="How many tokens of the text are used."
    )
    window: int = Field(
        512, ge=64, le=8192, description="Tokens per window; each is scored from an empty context."
    )
    skip: int = Field(
        0,
        ge=0,
        description="Positions at the start of each window that are read but not scored; half a "
        "window is what "
        "llama.cpp's perplexity tool skips.",
    )
    gates: dict[metrics.Name, Gate] = Field(
        {}, description="Metric → limits. Nothing is packaged outside of them."
    )
    tolerance: dict[metrics.Name, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="Metric → how much worse than the last batch's accepted package it may be, "
        "in the metric's unit; "
        "`phipipe batch` keeps that package as `latest` otherwise.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Evaluate:
        if self.window > self.tokens:
            at = "window" if "window" in self.model_fields_set else "tokens"
            raise At(at, f"`window` ({self.window}) is longer than `tokens` ({self.tokens})")
        if self.skip > self.window - 2:
            raise At(
                "skip",
                f"`skip` ({self.skip}) leaves nothing of a `window` of {self.window} tokens to "
                f"score",
            )
        return self


class Measure(Model):
    """How speed is measured: median over repetitions, after one warm-up."""

    prompt_tokens: int = Field(128, ge=1, le=131_072, description="Length of the prompt.")
    new_tokens: int = Field(64, ge=2, le=131_072, description="Longest answer.")
    repetitions: int = Field(5, ge=1, le=1000, description="Timed runs.")


class Recipe(Model):
    """One build: a model, a device, a backend, a precision."""

    GONE: ClassVar[Mapping[str, str]] = {
        "package": "what ships is always a folder: take the key out"
    }

    name: Annotated[str, AfterValidator(file_names.folder)] = Field(
        pattern=SLUG, description="Lower-case; names the package's folder."
    )
    source: Source = Field(description="The original model.")
    device: str = Field(
        min_length=1, description="A target device (`phipipe devices`), or a device file of yours."
    )
    backend: str = Field(BACKEND, description="The runtime family (`phipipe backends`).")
    precision: Precision = Field(description="Of the weights.")
    unit: str | None = Field(
        None,
        min_length=1,
        description="Which unit of the device (`phipipe devices NAME`); without it the first "
        "that the backend serves.",
    )
    context: int | None = Field(
        None,
        ge=64,
        le=1_048_576,
        description="Tokens of prompt and answer together that must fit into the device's "
        "memory; without it 4096, "
        "or what the model can where that is less.",
    )
    quantize: dict[str, Any] = Field(
        {}, description="The backend's own options (`phipipe backends NAME`)."
    )
    calibrate: Calibrate = Field(
        Calibrate(), description="Text that data-aware quantization learns from."
    )
    evaluate: Evaluate = Field(Evaluate(), description="Fidelity and gates.")
    measure: Measure = Field(Measure(), description="Speed.")
    tags: list[str] = Field(
        [], description="Words of yours, to select recipes by; they change no result."
    )

    @model_validator(mode="before")
    @classmethod
    def _usual_text(cls, data: Any) -> Any:
        """Models of the hub are judged on the field's usual text."""
        source, evaluate = (
            (data.get(key, {}) for key in ("source", "evaluate"))
            if isinstance(data, dict)
            else ({}, {})
        )
        if (
            isinstance(source, dict)
            and "repo" in source
            and isinstance(evaluate, dict)
            and "text" not in evaluate
        ):
            return {**data, "evaluate": {**evaluate, "text": {"dataset": wikitext("test")}}}
        return data


def recorded(data: Mapping[str, Any]) -> Recipe:
    """The recipe as a package's manifest holds it, also one of an earlier version, whose keys may
    be gone."""
    return Recipe.model_validate(
        {key: value for key, value in data.items() if key not in Recipe.GONE}
    )


def wikitext(split: str) -> dict[str, str]:
    """A ``Dataset`` as a recipe would name it; ``split`` is "test" or "train"."""
    return {**WIKITEXT, "file": WIKITEXT_FILE.format(split)}


@dataclass(frozen=True)
class Build:
    """One recipe to build: a variant of a matrix has been merged in, ``options`` validated."""

    name: str
    recipe: Recipe
    folder: Path
    options: BaseModel | None
    locate: Callable[[Sequence[Where], str], RecipeError] = field(
        default=lambda places, message: RecipeError(message), compare=False
    )


def paths_of(recipe: Recipe) -> list[tuple[Where, str]]:
    """Paths of the user's that ``recipe`` names, and where it does."""
    learned = recipe.calibrate.text.file if recipe.calibrate.text else None
    named: list[tuple[Where, str | None]] = [
        (("source", "path"), recipe.source.path),
        (("evaluate", "text", "file"), recipe.evaluate.text.file),
        (("calibrate", "text", "file"), learned),
        (("device",), recipe.device if recipe.device.endswith((".yaml", ".yml")) else None),
    ]
    return [(where, text) for where, text in named if text is not None]


def problem_at(
    build: Build, where: Where, message: str, hint: str | None = None, *others: Where
) -> TargetError:
    """A TargetError that points at the place in the recipe that ``message`` speaks of.

    Where ``others`` have a part in it as well, the one that decides is shown: what the command line
    says, else what the variant says, else what is written at all.
    """
    found = build.locate((where, *others), message)
    return TargetError(found.message, hint=hint, problems=found.problems)


def load(
    path: Path,
    *,
    options: Mapping[str, type[BaseModel]],
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
) -> list[Build]:
    """The builds that the file ``path`` describes.

    Args:
        options: backend name → the model of its ``quantize:`` section.
        sets: ``dotted.key=value`` overrides, the value in YAML; they win over every variant of a
            matrix, too.
        only: names of the variants wanted, all if empty; nothing is asked of the others.

    Raises:
        RecipeError: everything that is wrong with the file, by line and column, or an unknown name
            in ``only``.
    """
    made, error = gather(path, options=options, sets=sets, only=only)
    if error:
        raise error
    return made


def gather(
    path: Path,
    *,
    options: Mapping[str, type[BaseModel]],
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
) -> tuple[list[Build], RecipeError | None]:
    """As ``load``: what is wrong with the file, and the builds of the variants that are right all
    the same.

    Raises:
        RecipeError: nothing in the file can be looked at.
    """
    return of_document(
        read(path), user_paths.resolved(path).parent, options=options, sets=sets, only=only
    )


def of_document(
    document: Document,
    folder: Path,
    *,
    options: Mapping[str, type[BaseModel]],
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
) -> tuple[list[Build], RecipeError | None]:
    """As ``gather``, of a text that was read already; relative paths in it count from ``folder``.

    Raises:
        RecipeError: nothing in the text can be looked at.
    """
    loading = _Loading(document, options)
    loading.override(sets)
    return loading.builds(folder, only)


class _Loading:
    """One file on its way to builds: gathers problems instead of stopping at the first."""

    def __init__(self, document: Document, options: Mapping[str, type[BaseModel]]) -> None:
        self._document, self._options = document, options
        self._problems: list[Problem] = []
        self._sets: dict[Where, str] = {}  # what came from the command line → how it was said there
        self._overrides: list[tuple[tuple[str, ...], Any, str]] = []
        if not isinstance(document.data, dict):
            message = "a recipe is a mapping of keys: `name:`, `source:`, `device:` …"
            raise document.error([Problem(*document.place(()), message)])
        self._data: dict[str, Any] = document.data

    def override(self, sets: Sequence[str]) -> None:
        """Lay ``dotted.key=value`` texts on the file's data; a value replaces what is there."""
        for text in sets:
            where, value, shown = overlay.parts(text)
            try:
                parsed = (
                    parse(value, "") if value.strip() else Document("", "", values={(): (1, 1)})
                )
            except RecipeError as error:
                words = error.message.splitlines()[0].partition(": ")[
                    2
                ]  # without the place in so short a text
                raise RecipeError(f"--set {shown}: {words}") from None
            overlay.put(self._data, where, parsed.data, shown)
            if where[0] != "matrix":
                self._overrides.append((where, parsed.data, shown))
            for known in (self._document.keys, self._document.values, self._sets):
                for old in [path for path in known if path[: len(where)] == where]:
                    del known[old]
            self._sets |= {(*where, *inner): shown for inner in parsed.values}

    def builds(
        self, folder: Path, only: Sequence[str] = ()
    ) -> tuple[list[Build], RecipeError | None]:
        base = {key: value for key, value in self._data.items() if key != "matrix"}
        variants = (
            self._variants(base) if "matrix" in self._data else [(base, str(base.get("name")), ())]
        )
        if only and not self._problems:
            chosen = overlay.wanted(only, [name for _, name, _ in variants], str(base.get("name")))
            variants = [variant for variant in variants if variant[1] in chosen]
        made = [
            build
            for variant in variants
            if not self._enough() and (build := self._build(*variant, folder))
        ]
        if not self._problems:
            return made, None
        unpinned = any(
            re.search("never a branch|no full commit", problem.message)
            for problem in self._problems
        )
        return made, self._document.error(
            self._problems, f"phipipe pin {self._document.name}" if unpinned else None
        )

    def _variants(self, base: dict[str, Any]) -> list[tuple[dict[str, Any], str, Where]]:
        """(merged data, build name, place) of every entry of the matrix."""
        matrix = self._data["matrix"]
        if not isinstance(matrix, list) or not matrix:
            self._problem(
                ("matrix",),
                "a matrix is a list of variants, each a mapping such as `{precision: int8}`",
            )
            return []
        if len(matrix) > MAX_VARIANTS:
            self._problem(("matrix", MAX_VARIANTS), f"a matrix has at most {MAX_VARIANTS} variants")
        made: list[tuple[dict[str, Any], str, Where]] = []
        names: dict[str, int] = {}
        for i, entry in enumerate(matrix[:MAX_VARIANTS]):
            at: Where = ("matrix", i)
            if not isinstance(entry, dict):
                self._problem(
                    at, "a matrix is a list of variants, each a mapping such as `{precision: int8}`"
                )
                continue
            merged = lay(base, entry)
            unknown = [key for key in entry if key not in VARIANT_KEYS]
            for key in unknown:
                message = f"unknown key `{shorten(key)}` in a variant{near(key, VARIANT_KEYS)}"
                if key in Recipe.GONE:
                    message = gone(Recipe, key)
                elif key in Recipe.model_fields:
                    message = f"`{key}` is the same for all variants; write it before the matrix"
                self._problem((*at, key), message, key=True)
            name = self._variant_name(entry, merged, str(base.get("name")), at)
            if (first := names.get(name)) and not unknown:
                message = (
                    f"a second variant `{shorten(name)}`, as on line {first}; give it a "
                    f"`name:` of its own"
                )
                self._problem(at, message)
            names.setdefault(name, self._document.place(at)[0])
            merged = deepcopy(merged)
            for where, value, text in self._overrides:
                overlay.put(merged, where, value, text)
            made.append((merged, f"{base.get('name')}-{name}", at))
        return made

    def _variant_name(
        self, entry: dict[str, Any], merged: dict[str, Any], recipe: str, at: Where
    ) -> str:
        name = entry.get("name", f"{merged.get('backend', BACKEND)}-{merged.get('precision')}")
        if "name" in entry and not (isinstance(name, str) and re.fullmatch(SLUG[1:-1], name)):
            message = (
                "a variant's name is text: lower-case letters, digits, `.`, `_`, `-`; a "
                "letter or digit first"
            )
            self._problem((*at, "name"), message)
        elif reason := file_names.unfit(f"{recipe}-{name}"):
            self._problem(
                at, f"no folder can have the name `{shorten(str(name))}` everywhere: {reason}"
            )
        elif len(f"{recipe}-{name}") > 80:
            self._problem(
                at, "the recipe's and the variant's name have more than 80 characters together"
            )
        return str(name)

    def _build(self, data: dict[str, Any], name: str, variant: Where, folder: Path) -> Build | None:
        recipe = self._validate(Recipe, data, (), variant)
        options = None
        backend = data.get("backend", BACKEND)
        if isinstance(backend, str) and backend not in self._options:
            known = ", ".join(self._options)
            message = (
                f"unknown backend "
                f"`{shorten(backend)}`{near(backend, self._options) or f'; there are {known}'}"
            )
            self._problem(("backend",), message, variant=variant)
        elif isinstance(backend, str) and isinstance(quantize := data.get("quantize", {}), dict):
            options = self._validate(self._options[backend], quantize, ("quantize",), variant)
        if recipe is not None:
            self._look_at_paths(recipe, folder, variant)
        if recipe is None or options is None:
            return None
        return Build(
            name,
            recipe,
            folder,
            options,
            lambda places, message: self._located(places, message, variant),
        )

    def _look_at_paths(self, recipe: Recipe, folder: Path, variant: Where) -> None:
        """What no machine could have at a path is said where the path stands; that it is missing
        here is for later."""
        for where, text in paths_of(recipe):
            if odd := user_paths.oddity(folder / os.path.expanduser(text), text):  # noqa: PTH111 (never raises)
                self._problem(where, f"`{shorten(text)}` {odd}", variant=variant)

    def _validate(self, model: type[BaseModel], data: Any, prefix: Where, variant: Where) -> Any:
        try:
            # JSON's strict mode is the one we want: a list may become a tuple, "12" no number.
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            for where, message, key in complaints(error, model):
                if self._enough():
                    break
                self._problem((*prefix, *where), message, key=key, variant=variant)
        return None

    def _enough(self) -> bool:
        return len(self._problems) > 4 * MAX_PROBLEMS  # some are the same, said by several variants

    def _problem(self, where: Where, message: str, key: bool = False, variant: Where = ()) -> None:
        """Note ``message`` at the nearest place that exists: in the variant, on the command line,
        in the file."""
        # What no variant says is missing from the recipe, once; what others say, from this variant.
        if where == ("name",):  # the recipe's own; a variant has another key of that name
            variant = ()
        own = bool(variant) and self._varies(where[:1])
        for i in range(len(where), 0, -1):  # the command line has the last word
            if text := self._sets.get(where[:i]):
                self._problems.append(Problem(0, 0, f"--set {text}: {message}"))
                return
        for i in range(len(where), -1, -1):
            for at in (
                ((*variant, *where[:i]), where[:i]) if variant and (i or own) else (where[:i],)
            ):
                if text := self._sets.get(at):  # a matrix of the command line's
                    self._problems.append(Problem(0, 0, f"--set {text}: {message}"))
                    return
                if at in self._document.values and (at or not own):
                    self._problems.append(
                        Problem(*self._document.place(at, key and i == len(where)), message)
                    )
                    return
        self._problems.append(Problem(1, 1, message))

    def _varies(self, key: Where) -> bool:
        """Whether some variant speaks of ``key``; all do of the place (), the variant as a
        whole."""
        return not key or any(
            key[0] in entry for entry in self._data["matrix"] if isinstance(entry, dict)
        )

    def _located(self, places: Sequence[Where], message: str, variant: Where) -> RecipeError:
        before, self._problems = self._problems, []
        self._problem(self._decisive(places, variant), message, variant=variant)
        error = self._document.error(self._problems)
        self._problems = before
        return error

    def _decisive(self, places: Sequence[Where], variant: Where) -> Where:
        """The first of ``places`` that the command line speaks of, else the variant, else the
        file."""
        values = self._document.values
        said = [at for at in places if self._sets.get(at)]
        said += [
            at
            for at in places
            if variant and ((*variant, *at) in values or (*variant, *at) in self._sets)
        ]
        said += [at for at in places if at in values]
        return next(iter(said), places[0])
