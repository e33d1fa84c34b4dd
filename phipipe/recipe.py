"""What the user writes: frozen models, and ``load``, which reports every problem at once with its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from phipipe.document import Document, Problem, Where, near, parse, read
from phipipe.errors import RecipeError, TargetError

Precision = Literal["int4", "int8", "fp16", "fp32"]
Metric = Literal[
    "kld_mean", "kld_median", "kld_p99", "kld_max", "top1", "ppl", "ppl_ratio", "dp_rms", "size_gib",
    "bits_per_weight", "load_s", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_memory_gib",
]  # fmt: skip
MANY = 6  # more choices than this are not listed in a message that has a suggestion
COMMIT = r"^[0-9a-f]{40}$"
VARIANT_KEYS = ("name", "device", "backend", "precision", "quantize", "evaluate", "measure", "package")


class Model(BaseModel):
    """Frozen; an unknown key is an error; nothing is coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _exactly_one(value: BaseModel, names: Sequence[str]) -> None:
    given = [name for name in names if getattr(value, name) is not None]
    if len(given) != 1:
        said = " and ".join(f"`{name}`" for name in given) or "none"
        raise ValueError(f"give exactly one of {', '.join(f'`{n}`' for n in names)}; there is {said}")


class Dataset(Model):
    """A text file in a data set on the Hugging Face hub, pinned."""

    repo: str = Field(description="OWNER/NAME of the data set.")
    revision: Annotated[str, Field(pattern=COMMIT, description="The 40-hex commit.")]
    file: str = Field(description="The file's path inside it.")


class Source(Model):
    """The original model: one of a hub repository at a commit, a local folder, or an embedded model."""

    repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$", description="OWNER/NAME on the Hugging Face hub.")
    revision: str | None = Field(None, pattern=COMMIT, description="The 40-hex commit of `repo`; never a branch.")
    path: str | None = Field(None, min_length=1, description="A local checkpoint; relative to the recipe's folder.")
    builtin: Literal["tiny-phi3"] | None = Field(None, description="A model that phipipe carries.")

    @model_validator(mode="after")
    def _one(self) -> Source:
        _exactly_one(self, ("repo", "path", "builtin"))
        if (self.repo is None) != (self.revision is None):
            raise ValueError("a hub source has both `repo` and `revision`, the 40-hex commit to build from")
        return self


class Text(Model):
    """The text that predictions are compared on: one of these."""

    builtin: Literal["stories"] | None = Field(None, description="A text that phipipe carries.")
    file: str | None = Field(None, min_length=1, description="A UTF-8 file; relative to the recipe's folder.")
    dataset: Dataset | None = Field(None, description="A file on the hub.")

    @model_validator(mode="after")
    def _one(self) -> Text:
        _exactly_one(self, ("builtin", "file", "dataset"))
        return self


class Gate(Model):
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

    text: Text = Field(Text(builtin="stories"), description="The evaluation text.")
    tokens: int = Field(4096, ge=256, le=10_000_000, description="How many tokens of the text are used.")
    window: int = Field(512, ge=64, le=131_072, description="Tokens per window; each is scored from an empty context.")
    gates: dict[Metric, Gate] = Field({}, description="Metric → limits. Nothing is packaged outside of them.")

    @model_validator(mode="after")
    def _fits(self) -> Evaluate:
        if self.window > self.tokens:
            raise ValueError(f"`window` ({self.window}) is longer than `tokens` ({self.tokens})")
        return self


class Measure(Model):
    """How speed is measured: median over repetitions, after one warm-up."""

    prompt_tokens: int = Field(128, ge=1, le=131_072, description="Length of the prompt.")
    new_tokens: int = Field(64, ge=2, le=131_072, description="Longest answer.")
    repetitions: int = Field(5, ge=1, le=1000, description="Timed runs.")


class Package(Model):
    """What ships."""

    format: Literal["directory"] = Field("directory", description="A folder.")


class Recipe(Model):
    """One build: a model, a device, a backend, a precision."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$", description="Lower-case; names the package's folder.")
    source: Source = Field(description="The original model.")
    device: str = Field(min_length=1, description="A target device (`phipipe devices`), or a device file of yours.")
    backend: str = Field("onnxruntime", description="The runtime family (`phipipe backends`).")
    precision: Precision = Field(description="Of the weights.")
    quantize: dict[str, Any] = Field({}, description="The backend's own options (`phipipe backends NAME`).")
    evaluate: Evaluate = Field(Evaluate(), description="Fidelity and gates.")
    measure: Measure = Field(Measure(), description="Speed.")
    package: Package = Field(Package(), description="What ships.")
    tags: list[str] = Field([], description="Words of yours, to select recipes by.")


@dataclass(frozen=True)
class Build:
    """One recipe to build: a variant of a matrix has been merged in, ``options`` validated."""

    name: str
    recipe: Recipe
    folder: Path
    options: BaseModel | None
    locate: Callable[[Where, str], str] = field(default=lambda where, message: message, compare=False)


def problem_at(build: Build, where: Where, message: str, hint: str | None = None) -> TargetError:
    """A TargetError that points at the place in the recipe that ``message`` speaks of."""
    return TargetError(build.locate(where, message), hint=hint)


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
        sets: ``dotted.key=value`` overrides, the value in YAML; applied before the matrix.
        only: names of the variants wanted, all if empty.

    Raises:
        RecipeError: everything that is wrong with the file, by line and column, or an unknown name in ``only``.
    """
    loading = _Loading(read(path), options)
    loading.override(sets)
    builds = loading.builds(path.resolve().parent)
    known = [build.name for build in builds]
    short = {build.name.removeprefix(f"{builds[0].recipe.name}-"): build.name for build in builds}
    for name in only:
        if name not in known and name not in short:
            raise RecipeError(
                f"--only {name}: no such variant{near(name, known)}", hint=f"variants: {', '.join(known)}"
            )
    wanted = {short.get(name, name) for name in only}
    return [build for build in builds if not wanted or build.name in wanted]


class _Loading:
    """One file on its way to builds: gathers problems instead of stopping at the first."""

    def __init__(self, document: Document, options: Mapping[str, type[BaseModel]]) -> None:
        self._document, self._options = document, options
        self._problems: list[Problem] = []
        self._sets: dict[Where, str] = {}
        if not isinstance(document.data, dict):
            raise document.error([Problem(1, 1, "a recipe is a mapping of keys: `name:`, `source:`, `device:` …")])
        self._data: dict[str, Any] = document.data

    def override(self, sets: Sequence[str]) -> None:
        for text in sets:
            dotted, equals, value = text.partition("=")
            where = tuple(dotted.split("."))
            if not equals or not all(where):
                raise RecipeError(f"--set {text}: give it as KEY=VALUE, such as --set precision=int8")
            try:
                parsed = parse(value, "value").data if value.strip() else None
            except RecipeError as error:
                raise RecipeError(f"--set {text}: {error.message.splitlines()[0]}") from None
            self._put(where, parsed, text)
            self._sets[where] = text

    def _put(self, where: Sequence[str], value: Any, text: str) -> None:
        inner = self._data
        for key in where[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"--set {text}: `{key}` is not a mapping of keys")
        inner[where[-1]] = value

    def builds(self, folder: Path) -> list[Build]:
        base = {key: value for key, value in self._data.items() if key != "matrix"}
        if "matrix" not in self._data:
            made = [self._build(base, str(base.get("name")), (), folder)]
        else:
            made = [self._build(*variant, folder) for variant in self._variants(base)]
        if self._problems:
            raise self._document.error(self._problems)
        return [build for build in made if build is not None]

    def _variants(self, base: dict[str, Any]) -> list[tuple[dict[str, Any], str, Where]]:
        matrix = self._data["matrix"]
        if not isinstance(matrix, list) or not matrix or not all(isinstance(entry, dict) for entry in matrix):
            self._problem(("matrix",), "a matrix is a list of variants, each a mapping such as `{precision: int8}`")
            return []
        made: list[tuple[dict[str, Any], str, Where]] = []
        names = set[str]()
        for i, entry in enumerate(matrix):
            for key in entry:
                if key not in VARIANT_KEYS:
                    message = f"unknown key `{key}` in a variant{near(key, VARIANT_KEYS)}"
                    self._problem(("matrix", i, key), message, key=True)
            merged = _merge(base, {k: v for k, v in entry.items() if k != "name" and k in VARIANT_KEYS})
            name = str(entry.get("name") or f"{merged.get('backend', 'onnxruntime')}-{merged.get('precision')}")
            if name in names:
                self._problem(("matrix", i), f"a second variant `{name}`; give it a `name:` of its own")
            names.add(name)
            made.append((merged, f"{base.get('name')}-{name}", ("matrix", i)))
        return made

    def _build(self, data: dict[str, Any], name: str, variant: Where, folder: Path) -> Build | None:
        recipe = self._validate(Recipe, data, (), variant)
        options = None
        backend = data.get("backend", "onnxruntime")
        if isinstance(backend, str) and backend not in self._options:
            known = ", ".join(self._options)
            message = f"unknown backend `{backend}`{near(backend, self._options) or f'; there are {known}'}"
            self._problem(("backend",), message, variant=variant)
        elif isinstance(backend, str) and isinstance(quantize := data.get("quantize", {}), dict):
            options = self._validate(self._options[backend], quantize, ("quantize",), variant)
        if recipe is None or options is None:
            return None
        return Build(name, recipe, folder, options, lambda where, message: self._located(where, message, variant))

    def _validate(self, model: type[BaseModel], data: Any, prefix: Where, variant: Where) -> Any:
        try:
            # JSON's strict mode is the one we want: a list may become a tuple, "12" no number.
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                where, message, key = _translate(item, model, data)
                self._problem((*prefix, *where), message, key=key, variant=variant)
        return None

    def _problem(self, where: Where, message: str, key: bool = False, variant: Where = ()) -> None:
        for i in range(len(where), 0, -1):
            if text := self._sets.get(where[:i]):
                self._problems.append(Problem(0, 0, f"--set {text}: {message}"))
                return
        self._problems.append(Problem(*self._place(where, key, variant), message))

    def _place(self, where: Where, key: bool, variant: Where) -> tuple[int, int]:
        if variant and (*variant, *where[:1]) in self._document.values:
            return self._document.place((*variant, *where), key)
        return self._document.place(where, key)

    def _located(self, where: Where, message: str, variant: Where) -> str:
        before, self._problems = self._problems, []
        self._problem(where, message, variant=variant)
        error = self._document.error(self._problems)
        self._problems = before
        return error.message


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``, maps within maps merged; another backend's ``quantize`` is not inherited."""
    made = dict(base)
    if over.get("backend", base.get("backend")) != base.get("backend"):
        made.pop("quantize", None)
    for key, value in over.items():
        old = made.get(key)
        made[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return made


def _translate(item: Any, model: type[BaseModel], data: Any) -> tuple[Where, str, bool]:
    """(place, message in plain words, whether the place is a key) of one of pydantic's errors."""
    kind, context, given = item["type"], item.get("ctx", {}), item.get("input")
    where: Where = tuple(part for part in item["loc"] if part != "[key]")
    name = str(where[-1]) if where else ""
    if kind == "extra_forbidden":
        return where, f"unknown key `{name}`{near(name, _fields(model, where[:-1]))}", True
    if kind == "missing":
        return where[:-1], f"`{name}` is missing", False
    if kind == "literal_error":
        known = [choice.strip("'") for choice in str(context["expected"]).replace(" or ", ", ").split(", ")]
        is_key = "[key]" in item["loc"]
        word = "metric" if is_key else "value"
        choices = f", it is one of {', '.join(known)}" if len(known) <= MANY or not near(str(given), known) else ""
        return where, f"unknown {word} `{given}`{choices}{near(str(given), known)}", is_key
    if kind == "string_pattern_mismatch":
        return where, _pattern(name, given), False
    if kind == "value_error":
        return where, str(context["error"]), False
    words = {
        "string_type": f"expected text, got {_show(given)}; put it in quotes",
        "int_type": f"expected a whole number, got {_show(given)}",
        "int_from_float": f"expected a whole number, got {_show(given)}",
        "float_type": f"expected a number, got {_show(given)}",
        "bool_type": f"expected true or false, got {_show(given)}",
        "finite_number": "must be a finite number",
        "greater_than_equal": f"must be at least {context.get('ge')}, not {_show(given)}",
        "less_than_equal": f"must be at most {context.get('le')}, not {_show(given)}",
        "string_too_short": "must not be empty",
    }
    expected = {"model_type": "a mapping of keys", "dict_type": "a mapping of keys", "list_type": "a list"}
    expected |= {"tuple_type": "a list", "model_attributes_type": "a mapping of keys"}
    if kind in expected:
        return where, f"expected {expected[kind]}, got {_show(given)}", False
    return where, words.get(kind, str(item["msg"])), False


def _pattern(name: str, given: Any) -> str:
    if name == "revision":
        return f"`{given}` is no commit; a recipe pins one: 40 hexadecimal digits, never a branch or tag"
    if name == "repo":
        return f"`{given}` is no repository; it is written OWNER/NAME"
    return f"`{given}` will not do: lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit"


def _fields(model: type[BaseModel], where: Where) -> list[str]:
    """Keys that are known where an unknown one was found."""
    current: Any = model
    for part in where:
        annotation = current.model_fields[part].annotation if part in getattr(current, "model_fields", {}) else None
        inner = [annotation, *getattr(annotation, "__args__", ())]
        current = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), current)
    extra = ["matrix"] if current is Recipe else []
    return [*current.model_fields, *extra]


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = str(value)
    shown = text if len(text) <= 60 else text[:57] + "…"
    return f"text `{shown}`" if isinstance(value, str) else f"`{shown}`"
