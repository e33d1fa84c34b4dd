"""What is measured of a build: one table, read by gates, tolerances, tables, the board, the card
and the schema. What a row must say is in ``metric``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from phipipe.metric import WORDS, Kind, Metric

__all__ = ["METRICS", "ROWS", "SIZES", "SPEEDS", "WORDS", "Kind", "Metric", "Name", "names"]

ROWS = (
    Metric(
        name="kld_mean",
        title="KL divergence, mean",
        column="KLD, nats",
        meaning="How far the file's predictions are from the original's, in nats, averaged over "
        "the text. 0 is no difference; usual are about 0.001 for 8 bits and 0.03 for 4 bits.",
        reads_as="{yardstick}",
        better="lower",
        kind="fidelity",
        unit="nats",
    ),
    Metric(
        name="kld_run",
        title="KL divergence as it runs, mean",
        column="KLD as it runs, nats",
        short="KLD run",
        meaning="The mean KL divergence of the build as its runtime computes by default, in nats. "
        "`kld_mean` is what the file loses; what the runtime rounds besides is in here, too.",
        reads_as="{run}",
        better="lower",
        kind="fidelity",
        unit="nats",
    ),
    Metric(
        name="kld_median",
        title="KL divergence, median",
        column="KLD median, nats",
        meaning="The KL divergence at the middle position, in nats. Half of all positions are "
        "closer to the original.",
        reads_as="half of all positions are closer to the original",
        better="lower",
        kind="fidelity",
        unit="nats",
    ),
    Metric(
        name="kld_p99",
        title="KL divergence, 99 %",
        column="KLD 99 %, nats",
        meaning="The KL divergence that 1 position in 100 exceeds, in nats. It shows how bad "
        "the bad positions are.",
        reads_as="1 position in 100 is further from the original",
        better="lower",
        kind="fidelity",
        unit="nats",
    ),
    Metric(
        name="kld_max",
        title="KL divergence, highest",
        column="KLD highest, nats",
        meaning="The KL divergence at the worst position of the text, in nats.",
        reads_as="the worst single position",
        better="lower",
        kind="fidelity",
        unit="nats",
    ),
    Metric(
        name="top1",
        title="Same first choice",
        column="top-1 %",
        meaning="How often the build and the original agree on the likeliest next token. "
        "Recipes write it from 0 to 1, tables in percent.",
        reads_as="how often the likeliest next token is the original's",
        better="higher",
        kind="fidelity",
        unit="%",
        factor=100,
        digits=4,
    ),
    Metric(
        name="ppl",
        title="Perplexity",
        column="perplexity",
        meaning="How well the build predicts the text: the number of tokens between which it "
        "hesitates, on average. Only builds of one model on one text compare.",
        reads_as="{original}",
        better="lower",
        kind="fidelity",
    ),
    Metric(
        name="ppl_ratio",
        title="Perplexity / original's",
        column="ppl ratio",
        short="× ppl",
        meaning="The build's perplexity over the original's. 1 is no change; 1.05 predicts the "
        "text 5 % worse.",
        reads_as="{change}",
        better="lower",
        kind="fidelity",
        digits=4,
    ),
    Metric(
        name="dp_rms",
        title="Δp, root mean square",
        column="Δp, % points",
        meaning="The typical change of the probability that the build gives to the true next "
        "token (root mean square). Recipes write it from 0 to 1, tables in percentage "
        "points.",
        reads_as="typical change of the true token's probability",
        better="lower",
        kind="fidelity",
        unit="% points",
        factor=100,
    ),
    Metric(
        name="image_kld_mean",
        title="KL divergence after pictures, mean",
        column="KLD of pictures, nats",
        meaning="The mean KL divergence from the original on questions about pictures, in nats.",
        reads_as="{pictures}",
        better="lower",
        kind="pictures",
        unit="nats",
    ),
    Metric(
        name="image_top1",
        title="Same first choice after pictures",
        column="top-1 of pictures, %",
        meaning="How often the build and the original agree on the likeliest next token in "
        "answers about pictures. Recipes write it from 0 to 1, tables in percent.",
        reads_as="{pictures}",
        better="higher",
        kind="pictures",
        unit="%",
        factor=100,
    ),
    Metric(
        name="ended",
        title="Answers that end",
        column="ended, %",
        meaning="Of the prompts to which the original's answer ends by itself, the share to which "
        "the build's answer does, too. Recipes write it from 0 to 1, tables in percent.",
        reads_as="of {asked} which the original ends by itself",
        better="higher",
        kind="answers",
        unit="%",
        factor=100,
    ),
    Metric(
        name="loops",
        title="Answers that loop",
        column="loops, %",
        meaning="The share of answers that end in a cycle which repeats until the limit, of those "
        "where the original's does not. Recipes write it from 0 to 1, tables in percent.",
        reads_as="of {asked} in which the original does not loop",
        better="lower",
        kind="answers",
        unit="%",
        factor=100,
    ),
    Metric(
        name="empty",
        title="Empty answers",
        column="empty, %",
        meaning="The share of answers without a visible character, of those where the original "
        "says something. Recipes write it from 0 to 1, tables in percent.",
        reads_as="of {asked} in which the original says something",
        better="lower",
        kind="answers",
        unit="%",
        factor=100,
    ),
    Metric(
        name="answer_flips",
        title="Other first token",
        column="flips, %",
        meaning="The share of answers whose first token is another than the original's. Recipes "
        "write it from 0 to 1, tables in percent.",
        reads_as="of {asked}",
        better="lower",
        kind="answers",
        unit="%",
        factor=100,
    ),
    Metric(
        name="first_divergence",
        title="Tokens before the first difference",
        column="same tokens",
        meaning="How many tokens an answer has in common with the original's before the first that "
        "differs, on average. An answer that is the same throughout counts with its length.",
        reads_as="at the start of {asked}",
        better="higher",
        kind="answers",
        unit="tokens",
    ),
    Metric(
        name="tool_json_valid",
        title="Valid tool calls",
        column="tool calls, %",
        meaning="Of the prompts with tools which the original answers with a valid call, the share "
        "which the build does, too: JSON with a known name and fitting arguments. Recipes write it "
        "from 0 to 1, tables in percent.",
        reads_as="of {asked} which are valid calls of tools in the original",
        better="higher",
        kind="answers",
        unit="%",
        factor=100,
    ),
    Metric(
        name="size_gib",
        title="Size",
        column="size",
        meaning="All files that the runtime needs, in GiB (2³⁰ bytes), so not a package's papers.",
        reads_as="all files that the runtime needs",
        better="lower",
        kind="size",
        unit="GiB",
    ),
    Metric(
        name="bits_per_weight",
        title="Bits per weight",
        column="bits/weight",
        short="bits/w",
        meaning="The size of the weight files in bits, divided by the original's number of "
        "parameters. A 4-bit build has more than 4: scales and some layers need more.",
        reads_as="weight files / the original's parameters",
        better="lower",
        kind="size",
        unit="bits",
    ),
    Metric(
        name="decode_tokens_per_s",
        title="Answer speed",
        column="tokens/s",
        meaning="How fast the answer appears, in tokens per second after the first token.",
        reads_as="tokens after the first",
        better="higher",
        kind="speed",
        unit="tokens/s",
    ),
    Metric(
        name="prefill_tokens_per_s",
        title="Prompt speed",
        column="prompt tokens/s",
        meaning="How fast the build reads the prompt, in tokens per second.",
        reads_as="reading a {prompt}",
        better="higher",
        kind="speed",
        unit="tokens/s",
    ),
    Metric(
        name="ttft_s",
        title="Time to first token",
        column="TTFT",
        meaning="The wait between the end of the prompt and the first token of the answer, in "
        "seconds.",
        reads_as="after a {prompt}",
        better="lower",
        kind="speed",
        unit="s",
    ),
    Metric(
        name="load_s",
        title="Load",
        column="load",
        meaning="The time to open the model and give one token, in seconds.",
        reads_as="opening the model, and one token",
        better="lower",
        kind="speed",
        unit="s",
    ),
    Metric(
        name="peak_memory_gib",
        title="Peak memory",
        column="peak memory",
        short="memory",
        meaning="The most memory that the whole process held, in GiB. Runtime and interpreter "
        "are included.",
        reads_as="whole process: runtime and interpreter included",
        better="lower",
        kind="speed",
        unit="GiB",
    ),
)
METRICS: Mapping[str, Metric] = {row.name: row for row in ROWS}
if TYPE_CHECKING:
    Name = str  # a type checker cannot read a table
else:
    Name = Literal[tuple(METRICS)]


def names(*kinds: Kind) -> frozenset[str]:
    """Names of the metrics of these kinds."""
    return frozenset(row.name for row in ROWS if row.kind in kinds)


SIZES, SPEEDS = names("size"), names("speed")
