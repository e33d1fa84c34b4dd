"""What a backend must offer, and the few types that cross its border."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydantic import BaseModel

from phipipe.models.any_model import ANY_MODEL
from phipipe.steps import Json, Params, Step

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.backends.choosing import Choose
    from phipipe.backends.rules import Fixup, Rule
    from phipipe.backends.widths import Stored, Stores
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.device import Unit
    from phipipe.recipe.recipe import Precision, Recipe

    Floats = npt.NDArray[np.float32]


Chosen = TypeVar("Chosen", bound=BaseModel)  # a backend's options, the recipe's `quantize:` section
Chat = Sequence[Mapping[str, Json]]  # messages, or tools, as `models.prompts` has them
Options = Any  # those of some backend; which it is, the recipe says


@dataclass(frozen=True)
class Job(Generic[Chosen]):
    """What a backend is asked to build.

    ``checkpoint`` is ``ANY_MODEL`` where none was read. ``patch`` holds what the checkpoint's
    fix-ups set in ``config.json``; converters apply it to a ``staged`` copy. ``unit`` is the part
    of the device that will run the artifact, None for this machine's CPU. ``widths``: matrix
    (``models.linears``) → how `quantize.map` has it stored; where weights are learned, all of them.
    """

    recipe: Recipe
    options: Chosen
    checkpoint: Checkpoint = ANY_MODEL
    patch: Mapping[str, Json] = field(default_factory=dict)
    unit: Unit | None = None
    widths: Mapping[str, Stored] = field(default_factory=dict)

    @property
    def learns(self) -> bool:
        """Whether its weights are learned: step ``weights`` has them, a folder of
        ``algorithms.lattice``."""
        return self.recipe.weights.learn is not None and self.recipe.precision == "int4"

    @property
    def api(self) -> str:
        """The API of the unit."""
        return self.unit.api if self.unit else "cpu"

    @property
    def codec_params(self) -> Params:
        """What ``Backend.codec`` is called with: the options of `quantize:`, the unit's ``api``,
        and ``source_dtype``, the one of the checkpoint's floats."""
        chosen = self.options.model_dump(mode="json", exclude={"map"})
        return {**chosen, "api": self.api, "source_dtype": self.checkpoint.dtype}


class Runtime(Protocol):
    """An opened artifact; the seam that makes every number comparable."""

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of every position, float32 [len(tokens), vocabulary]; no state is kept between
        calls."""

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        """At most ``limit`` ids, the likeliest or ``choose``'s; an end-of-text token ends them."""

    def close(self) -> None:
        """Free the model. The object is not used afterwards."""


class Tokenizer(Protocol):
    """The tokenizer that ships inside an artifact, as its own runtime reads it."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without added special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, without special tokens."""

    def render(self, messages: Chat, ask: bool = True, tools: Chat | None = None) -> str:
        """A chat in the artifact's template; it may ``ask`` for an answer, and show ``tools``."""


class Codec(Protocol):
    """What a backend's files hold of a weight: its own rounding, and its own decoding of it."""

    def __call__(self, weight: Floats, stored: Stored, importance: Floats, /) -> Floats:
        """The values float32 [rows, columns] that a runtime multiplies with, where ``weight``
        float32 [rows, columns], some rows of a matrix, is ``stored`` so; at 16 bits what the
        backend's floats hold.

        ``importance`` float32 [columns]: the mean square of each input; zeros where none is known.
        It counts where the backend's rounding weighs errors. Each row is rounded by itself.

        Raises:
            StepFailed: the backend cannot store such rows so.
        """


class Opener(Protocol):
    """How a backend loads an artifact (called inside the backend's toolchain)."""

    def __call__(self, artifact: Path, api: str = "cpu") -> Runtime:
        """With "cpu" it is loaded so that figures show what the stored values are worth, whatever
        unit it is meant for; with another API of ``toolchain_on``, on that unit of this machine.

        Raises:
            TargetError: this machine has no such unit, or this toolchain cannot use it.
        """


class RunOpener(Protocol):
    """How a backend loads an artifact as programs do (called inside the backend's toolchain)."""

    def __call__(self, artifact: Path, api: str = "cpu", cache: str = "") -> Runtime:
        """As ``Opener``, but it computes as the runtime does by default, and its logits read keys
        and values from the cache as it keeps them: a word of ``caches``, or as it usually does."""


@dataclass(frozen=True, kw_only=True)
class Finer:
    """``options`` of the recipe's ``section`` that bring an int4 build closer to the original.

    A scheme that holds the words ``told`` has them already; units ``not_on``, and a scheme that
    holds ``unless``, rule them out.
    """

    options: Mapping[str, Json]
    told: str
    section: str = "quantize"
    not_on: frozenset[str] = frozenset()
    unless: str = "\0"


# On a trained model it left a fifth of each runtime's own divergence, at the same size.
LEARNING = Finer(section="weights", options={"learn": "gptq"}, told="learned")


def _grows(job: Job[Chosen]) -> int | None:
    """The cache grows as it is used."""
    return None


def _by_rows(job: Job[Chosen]) -> bool:
    """As most options say it."""
    return getattr(job.options, "group_size", None) == -1


def _alike(recipe: Recipe, api: str) -> str:
    """Nothing is done otherwise by default."""
    return ""


def _by_no_group(head_size: int) -> int | None:
    """Heads of every size are kept alike."""
    return None


def _no_usual(recipe: Recipe, api: str) -> str | None:
    """The usual cache is none of those that can be asked for."""
    return None


def _is_uniform(options: object) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Backend(Generic[Chosen]):
    """The face of a runtime family: all that the rest of phipipe knows of it.

    ``phipipe/backends/<name>/__init__.py`` declares one as ``FACE``. It is light: what is heavy is
    imported by ``open``, ``tokenizer`` and the steps, when they run.
    """

    title: str
    toolchain: str
    options: type[Chosen]  # the recipe's `quantize:` section
    precisions: Mapping[str, Mapping[Precision, str]]
    """API of a device's unit (phipipe/devices/*.yaml) → our precision → the runtime's own word."""
    systems: frozenset[str]  # operating systems that the runtime exists for
    cache_bytes: Mapping[str, int]
    """Per API: bytes of one value in the KV cache, as the runtime keeps it by default."""
    files: tuple[str, ...]
    """Patterns of what packages hold besides what all have (``package.gate.COMMON``)."""
    steps: Callable[[Job[Chosen]], list[Step]]
    """Steps from ``source`` to the artifact; the last one's output is what ships."""
    scheme: Callable[[Job[Chosen]], str]
    """How the weights are stored, in the runtime's own words and few of them: "Q4_K_M"."""
    open: Opener
    tokenizer: Callable[[Path], Tokenizer]
    """Open the artifact's own tokenizer (called inside the backend's toolchain)."""

    wide: Opener | None = None
    """As ``open``, and it generates with a thread for every core, if the runtime takes fewer by
    itself: the same tokens, in less time."""
    knob: Callable[[Recipe, str], str] = _alike
    """What the runtime does by default on a unit, and ``open`` has it not do, so that figures show
    the file: in words, such as "float16 arithmetic". Empty: it is scored as it runs."""
    open_run: RunOpener | None = None  # where there is a knob
    caches: Mapping[str, str] = field(default_factory=dict)
    """"q8" and "q4", keys and values in 8 or 4 bits, if ``open_run`` can keep them so → how the
    runtime calls that."""
    cache_group: Callable[[int], int | None] = _by_no_group
    """Head size → neighbouring keys or values that share a scale in ``caches``; None where that is
    no choice of the model's."""
    usual_cache: Callable[[Recipe, str], str | None] = _no_usual
    """Which of ``caches`` the runtime keeps by default for a recipe on a unit, if any."""
    context_length: Callable[[Job[Chosen]], int | None] = _grows
    """Positions of the cache (prompt and answer) that the artifact fixes; None: it grows."""
    rules: tuple[Rule, ...] = ()  # what is impossible or unwise here, besides ``model_rules.RULES``
    fixups: tuple[Fixup, ...] = ()  # besides ``fixups.FIXUPS``, and after them
    reads_resaved: bool = False  # finds rotary settings where transformers 5 saves them
    normalizes: bool = True  # its tokenizer brings texts into a form of Unicode where asked to
    cuts_digits: bool = True  # its tokenizer cuts digits off first, where asked to
    rotary: frozenset[str] = frozenset({"longrope"})
    """Rotary scalings that it is proven to compute (``models.rotary.features``)."""
    tables: bool = False  # its graph holds cosines and sines of all positions of the context
    by_rows: Callable[[Job[Chosen]], bool] = _by_rows
    """Whether all weights of a row share one scale."""
    is_uniform: Callable[[Chosen], bool] = _is_uniform
    """Whether options of an int4 build give all layers the same width."""
    wider: str = "set `precision: int8`"  # what keeps the sensitive layers wider
    apart: Mapping[str, Json] = field(default_factory=dict)
    """Options of an int4 build that do so; none where its usual ones do, or none can."""
    finer: tuple[Finer, ...] = ()  # what brings an int4 build closer, first the first
    host_apis: frozenset[str] = frozenset({"cpu"})
    """Units that a build is measured on where the build machine has them."""
    toolchains: Mapping[str, str] | None = None
    """API → the toolchain that runs an artifact on such a unit; None: ``toolchain``, on all."""
    tokens_only: frozenset[str] = frozenset()
    """Units whose runtime gives no logits: only speed is measured there."""
    emulated: Mapping[str, str] = field(default_factory=dict)
    """API → the step that runs an artifact here as that unit would."""
    vision: Mapping[str, str] = field(default_factory=dict)
    """Architecture that sees (``vision.kinds.KINDS``) → the step that puts its eyes beside the
    artifact."""
    eyes_on: frozenset[str] = frozenset({"cpu"})  # units that eyes are built for
    picture_tokens: Mapping[str, int] = field(default_factory=dict)
    """Architecture that sees → the id at which the runtime looks for pictures, if that is fixed."""
    unable: Mapping[str, str] = field(default_factory=dict)
    """Type of model of ``models.layouts`` that it cannot build → why, as the end of a sentence."""
    square: frozenset[str] = frozenset()
    """Of these, architectures whose pictures are seen right only where they are square."""
    has_contexts: bool = False  # its ONNX files may hold compiled parts of a graph
    quantized_by: frozenset[str] | None = None
    """Words for ``quant_method`` in its ``config.json``; None: no runtime reads that file."""
    is_compiled: bool = False  # the toolchain's main package comes as source code
    suits: str = ""  # when to choose this backend, in a sentence or two
    advice: Mapping[str, str] = field(default_factory=dict)
    """Option of ``quantize:`` → when to use which of its values; the reference shows it."""
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Option → value → what it is for, where every value has a line of its own."""
    stores: Stores | None = None  # what `quantize.map` may ask for; None: nothing
    weight_bits: Callable[[Job[Chosen], str, Stored, int], float] | None = None
    """With ``stores``: job, matrix, how it is stored, weights in its rows → bits that each weight
    takes in the artifact as planned, its share of scales and zero points with it."""
    codec: Callable[[Params], Codec] | None = None
    """What its files hold of a weight that ``stores`` knows: called inside its toolchain with
    ``Job.codec_params`` of an int4 build."""
    library: str = ""  # what loads its packages, as the hub calls it; empty: the backend's own name
    hub_tags: tuple[str, ...] = ()  # by which the hub's users find such files
    rank: int = 100  # of several that fit, `phipipe init` takes the lowest
    colour: int | None = None  # its place in ``board.colours.SERIES``; None: grey

    @property
    def apis(self) -> frozenset[str]:
        """APIs of the device units that it serves."""
        return frozenset(self.precisions)

    @property
    def to_answer(self) -> Opener:
        """How an artifact is opened whose answers count, and not how long they take."""
        return self.wide or self.open

    def toolchain_on(self, api: str) -> str | None:
        """The toolchain in which ``open(artifact, api)`` runs it on a machine that has such a unit;
        None: there is none."""
        if self.toolchains is not None:
            return self.toolchains.get(api)
        return self.toolchain if api in self.precisions else None


AnyBackend = Backend[Options]
AnyJob = Job[Options]
