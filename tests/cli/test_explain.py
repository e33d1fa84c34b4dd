"""Whatever a message names by an id is explained: rules, fix-ups, exit codes."""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from testing.plans import planned

import phipipe
from phipipe import errors
from phipipe.api import plan_words, show
from phipipe.backends import rules
from phipipe.cli import cli, explain, listeners, show_plans
from phipipe.errors import PhipipeError, RecipeError, TargetError
from phipipe.execution import events, past_runs
from phipipe.execution.outlook import Outlook
from phipipe.execution.results import Outcome
from phipipe.models import remarks
from phipipe.output import documents
from phipipe.planning.plan import Plan

PACKAGE = Path(phipipe.__file__).parent
RULES = {rule.id: rule for rule in explain.every_rule()}
IDS = tuple(explain.explanations())


def made(*kinds: str) -> Iterator[str]:
    """Ids that the code gives to rules, fix-ups and advice, wherever they are made."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", getattr(node.func, "attr", "")) in kinds
            ):
                named = [word.value for word in node.keywords if word.arg in ("id", "rule")]
                yield from (
                    str(v.value) for v in [*node.args[:1], *named] if isinstance(v, ast.Constant)
                )


def kinds_of_errors(kind: type[PhipipeError] = PhipipeError) -> Iterator[type[PhipipeError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from kinds_of_errors(inner)


def test_every_rule_and_every_fixup_that_the_code_makes_is_explained() -> None:
    found = {
        name for name in made("Rule", "Fixup", "Advice", "rule") if re.fullmatch(r"[A-Z]\d+", name)
    }
    assert len(found) > 60
    assert found <= {*IDS, *(also for one in explain.explanations().values() for also in one.also)}


def test_every_remark_on_a_checkpoint_is_explained() -> None:
    assert remarks.KINDS.keys() <= {*IDS}
    assert all(explain.find(name).why == kind.why for name, kind in remarks.KINDS.items())


def test_nobody_gives_advice_past_the_tables() -> None:
    advising = {
        p.name for p in PACKAGE.rglob("*.py") if re.search(r"\bAdvice\([^)]", p.read_text("utf-8"))
    }
    assert advising == {
        "rules.py",
        "preparation.py",
    }  # which repeats what ``remarks`` has a table of


def test_every_exit_code_is_explained() -> None:
    codes = {str(kind.exit_code) for kind in kinds_of_errors()} | {"0", "1", "143"}
    assert codes == {name for name in IDS if name.isdigit()}
    assert errors.Interrupted(exit_code=143).exit_code == 143


def test_nothing_is_explained_that_is_not_there() -> None:
    assert set(explain.table().rules) == set(RULES)
    assert set(explain.table().fixups) == {fix.id for fix in explain.every_fixup()}


@pytest.mark.parametrize("name", IDS)
def test_an_explanation_says_what_why_and_what_to_do(name: str) -> None:
    one = explain.find(name)
    assert all((one.what, one.why, one.do))
    assert one.since or one.kind == "exit code"
    assert not re.search(r"\{[a-z_.]+\}", one.what + one.do), "a placeholder that nobody filled"
    assert one.why.rstrip().endswith((".", "!"))
    assert max(map(len, explain.text(one).splitlines())) <= 110


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_has_a_remedy(rule: rules.Rule) -> None:
    assert rule.hint


@given(st.sampled_from(IDS), st.booleans())
def test_an_id_is_found_in_any_spelling(name: str, lower: bool) -> None:
    assert explain.find(f" {name.lower() if lower else name} ").id == name
    assert explain.find(f"[{name}]").id == name


@given(st.text(max_size=40))
def test_what_is_no_id_is_told_from_one_in_a_sentence(name: str) -> None:
    if name.strip().strip("[]").upper() in {*IDS, "M08", "M13"}:
        return
    with pytest.raises(RecipeError, match="nothing is called") as caught:
        explain.find(name)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_the_id_of_the_rule_behind_a_fixup_leads_to_it() -> None:
    assert explain.find("M08").id == "F1"
    assert explain.find("M07").id == "M07"


WARNED = ("precision=fp16", "device=webgpu-browser", "quantize={block_size: 64}")


def warned() -> Plan:
    """A build that a rule warns of."""
    return planned(*WARNED)


def test_a_remedy_stands_with_its_warning_in_plan_run_batch_card_and_json(tmp_path: Path) -> None:
    made = warned()
    (advice,) = made.warnings
    assert advice.hint
    foreseen = Outlook(plan=made, forecast=(), estimates={})
    logs = []
    for listening in (listeners.listener, listeners.many):
        stream = io.StringIO()
        with listening([made], stream):
            logs.append(stream.getvalue())
    (manifest,) = (step.params["warnings"] for step in made.steps if step.name == "package")
    for told in (show_plans.describe(foreseen), *logs, "\n".join(manifest)):
        assert f"{advice.message} [O14]" in told
        assert advice.hint in told.partition("[O14]")[2]
    expected = {"rule": "O14", "level": "warning", "message": advice.message, "hint": advice.hint}
    assert documents.plain(plan_words.plan_json(foreseen, None))["warnings"] == [expected]
    assert documents.plain(show.outcome_json(Outcome(plan=made)))["warnings"] == [expected]
    with events.recorded(tmp_path, "run", [made.build.name], listeners.Silent()) as recorder:
        recorder.advised(made.build.name, made.warnings)
    (event,) = [e for e in past_runs.find(tmp_path, "latest").events if e["event"] == "warning"]
    assert expected.items() <= event.items()


def test_all_remedies_of_a_refusal_are_shown() -> None:
    sets = ("precision=int8", "quantize={embeddings: quantized, algorithm: gptq}")
    with pytest.raises(TargetError) as refused:
        planned(*sets)
    assert {"O16", "O22"} <= set(re.findall(r"\[(O\d+)\]", refused.value.message))
    for name in ("O16", "O22"):
        assert str(RULES[name].hint) in str(refused.value.hint)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["explain", *words])
    return (
        result.exception.exit_code
        if isinstance(result.exception, PhipipeError)
        else result.exit_code
    ), result.stdout


def test_the_command_explains_lists_and_suggests() -> None:
    code, told = run("M20")
    assert (code, told.splitlines()[0]) == (0, "M20  warning")
    assert json.loads(run("7", "--json")[1])["kind"] == "exit code"
    assert [one["id"] for one in json.loads(run("--json")[1])] == list(IDS)
    assert len(run()[1].splitlines()) == len(IDS) + 1  # and the heads
    assert run("M2O")[0] == 2
    with pytest.raises(RecipeError, match="did you mean `M20`"):
        explain.find("M200")
