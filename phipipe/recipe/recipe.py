"""What the user writes, as frozen models; ``loading`` reads a file into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from phipipe import metrics
from phipipe.files import file_names
from phipipe.recipe import addresses
from phipipe.recipe.caching import Caching
from phipipe.recipe.complaints import At
from phipipe.recipe.learned import Weights
from phipipe.recipe.packaging import Packaging
from phipipe.recipe.source import COMMIT, REPO, Source
from phipipe.recipe.strict import Model, exactly_one, keys_of
from phipipe.recipe.tokens import AUTO, CAP_TOKENS, LEAST_TOKENS, USUAL_TOKENS, Tokens, most
from phipipe.recipe.variants import BACKEND
from phipipe.steps import Json
from phipipe.suggestions import shorten

Precision = Literal["int4", "int8", "fp16", "fp32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # the narrowest first
SLUG = r"^[a-z0-9][a-z0-9._-]{0,79}$"
MAX_VARIANTS = 100

# WikiText-2 (raw), what models of the hub are judged on where a recipe names no text. The commit is
# the one that public projects pin (evaluation scripts, the `datasets` library's own records of
# checksums).
WIKITEXT = {"repo": "Salesforce/wikitext", "revision": "b08601e04326c79dfdd32d625aee71d232d685c3"}
WIKITEXT_FILE = "wikitext-2-raw-v1/{}-00000-of-00001.parquet"


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


class Text(Model):
    """A text: one of these."""

    builtin: Literal["stories"] | None = Field(None, description="A text that phipipe carries.")
    file: str | None = Field(
        None, min_length=1, description="UTF-8 or Parquet; relative to the recipe's folder."
    )
    dataset: Dataset | None = Field(None, description="A file on the hub.")

    @model_validator(mode="after")
    def _one(self) -> Text:
        exactly_one(self, ("builtin", "file", "dataset"))
        return self


class Calibrate(Model):
    """What data-aware quantization learns from (`phipipe backends NAME` says which options do)."""

    text: Text | None = Field(
        None, description="Never the evaluation text. Embedded models have one of their own."
    )
    tokens: int = Field(
        16_384, ge=LEAST_TOKENS, le=10_000_000, description="How many tokens of the text are used."
    )
    window: int = Field(512, ge=64, le=8192, description="Tokens per sample.")

    @model_validator(mode="after")
    def _fits(self) -> Calibrate:
        if self.window > self.tokens:
            at = "window" if "window" in self.model_fields_set else "tokens"
            raise At(at, f"`window` ({self.window}) is longer than `tokens` ({self.tokens})")
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


class Prompts(Model):
    """Chats to answer: one of these."""

    builtin: Literal["chats"] | None = Field(None, description="Prompts that phipipe carries.")
    file: str | None = Field(
        None,
        min_length=1,
        description="JSON Lines, a chat each: `messages`, and `tools` where it has some; relative "
        "to the recipe's folder.",
    )

    @model_validator(mode="after")
    def _one(self) -> Prompts:
        exactly_one(self, ("builtin", "file"))
        return self


class Generate(Model):
    """Prompts that the original and the build answer, greedily. `{}` takes all defaults."""

    prompts: Prompts = Field(Prompts.model_construct(builtin="chats"), description="What is asked.")
    new_tokens: int = Field(
        128,
        ge=32,
        le=4096,
        description="Longest answer of the original; where it ends by itself, the build may take "
        "twice as many.",
    )
    limit: int | None = Field(
        None, ge=1, le=10_000, description="How many prompts, from the first; without it all."
    )


class Evaluate(Model):
    """How fidelity is measured, and what must hold."""

    text: Text = Field(
        Text.model_construct(builtin="stories"),
        description="The evaluation text; without it WikiText-2's test split for a model of the "
        "hub, else the stories.",
    )
    tokens: Tokens = Field(
        None,
        description=f"How many tokens of the text are used. `{AUTO}`: windows in a fixed random "
        f"order until every gate is decided and the standard error of the mean KL divergence is "
        f"below 5 %; {CAP_TOKENS} at most, or what the text has. Without it {USUAL_TOKENS}, and "
        f"`{AUTO}` for models above 10⁹ parameters.",
    )
    window: int = Field(
        512, ge=64, le=8192, description="Tokens per window; each is scored from an empty context."
    )
    skip: int = Field(
        0,
        ge=0,
        description="Positions at the start of each window that are read but not scored; half a "
        "window is what llama.cpp's perplexity tool skips.",
    )
    generate: Generate | None = Field(
        None,
        description="Answers to prompts beside the original's: do they end, loop, call tools? "
        "Without it nothing is asked.",
    )
    gates: dict[metrics.Name, Gate] = Field(
        {}, description="Metric → limits. Nothing is packaged outside of them."
    )
    accept: list[Literal["tokenizer"]] = Field(
        [],
        description="Differences from the original that are shipped all the same, said on card "
        "and board; `tokenizer`: the runtime's own reads some text otherwise.",
    )
    tolerance: dict[metrics.Name, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="Metric → how much worse than the last batch's accepted package it may be, "
        "in the metric's unit; `phipipe batch` keeps that package as `latest` otherwise.",
    )

    @property
    def most_tokens(self) -> int:
        """How many tokens are scored at most."""
        return most(self.tokens, self.window)

    @model_validator(mode="after")
    def _fits(self) -> Evaluate:
        if self.window > self.most_tokens:
            at = "window" if "window" in self.model_fields_set else "tokens"
            raise At(at, f"`window` ({self.window}) is longer than `tokens` ({self.most_tokens})")
        if self.skip > self.window - 2:
            raise At(
                "skip",
                f"`skip` ({self.skip}) leaves nothing of a `window` of {self.window} tokens to "
                f"score",
            )
        self._check_answers()
        return self

    def _check_answers(self) -> None:
        """Refuse limits of what nobody would measure."""
        for key, limits in (("gates", self.gates), ("tolerance", self.tolerance)):
            for name in limits:
                if self.generate is None and name in metrics.names("answers"):
                    raise At(
                        key,
                        f"`{name}` is measured on answers, and nothing is asked: add "
                        f"`generate: {{}}` beside `{key}`",
                    )


class Measure(Model):
    """How speed is measured: median over repetitions, after one warm-up."""

    prompt_tokens: int = Field(128, ge=1, le=131_072, description="Length of the prompt.")
    new_tokens: int = Field(64, ge=2, le=131_072, description="Longest answer.")
    repetitions: int | None = Field(None, ge=1, le=1000, description="Timed runs; else 3 to 5.")


class Recipe(Model):
    """One build: a model, a device, a backend, a precision."""

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
        "memory; without it 4096, or what the model can where that is less.",
    )
    weights: Weights = Field(
        Weights.model_construct(),
        description="Weights prepared once for every runtime; small int4 learns them.",
    )
    quantize: dict[str, Json] = Field(
        {}, description="The backend's own options (`phipipe backends NAME`)."
    )
    calibrate: Calibrate = Field(
        Calibrate.model_construct(), description="Text that data-aware quantization learns from."
    )
    evaluate: Evaluate = Field(Evaluate.model_construct(), description="Fidelity and gates.")
    measure: Measure = Field(Measure.model_construct(), description="Speed.")
    package: Packaging = Field(
        Packaging.model_construct(),
        description="What the finished package is made ready for, and who signs it.",
    )
    publish: list[Annotated[str, AfterValidator(addresses.checked)]] = Field(
        [],
        description="Where the package goes when it is written: hf://, oci:// and s3:// addresses; "
        "`{name}` is the build's name, `{digest}` the package's.",
    )
    cache: Caching = Field(Caching.model_construct(), description="What stays in the cache.")
    tags: list[str] = Field(
        [], description="Words of yours, to select recipes by; they change no result."
    )

    @model_validator(mode="before")
    @classmethod
    def _usual_text(cls, data: Json) -> Json:
        """Models of the hub are judged on the field's usual text."""
        source, evaluate = (
            (data.get(key, {}) for key in ("source", "evaluate"))
            if isinstance(data, dict)
            else ({}, {})
        )
        if (
            isinstance(source, dict)
            and "repo" in (source["base"] if isinstance(source.get("base"), dict) else source)
            and isinstance(evaluate, dict)
            and "text" not in evaluate
        ):
            return {**data, "evaluate": {**evaluate, "text": {"dataset": wikitext("test")}}}
        return data


def recorded(data: Mapping[str, Json]) -> Recipe:
    """The recipe as a package's manifest holds it, also one of an earlier version, whose keys may
    be gone."""
    kept = dict(data)
    package = kept.get("package")
    if not isinstance(package, dict) or not set(package) <= set(keys_of(Packaging)):
        kept.pop("package", None)  # once it said that a package is a folder
    return Recipe.model_validate(kept)


def wikitext(split: str) -> dict[str, str]:
    """A ``Dataset`` as a recipe would name it; ``split`` is "test" or "train"."""
    return {**WIKITEXT, "file": WIKITEXT_FILE.format(split)}
