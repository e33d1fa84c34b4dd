"""Steps that ask for answers: where they stand, what they share, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing import plans
from testing import recipes as recipe_files

from phipipe.errors import SourceError, TargetError
from phipipe.steps import Step

ASKED = "evaluate.generate={}"


def steps(*sets: str) -> dict[str, Step]:
    return {step.name: step for step in plans.planned(*sets).steps}


def test_nothing_is_asked_unless_the_recipe_says_so() -> None:
    assert not {"prompts", "questions", "answers"} & steps().keys()


def test_answers_are_judged_before_the_gates_and_kept_in_the_package() -> None:
    names = steps(ASKED)
    assert names["questions"].needs == {"source": "source", "prompts": "prompts"}
    assert names["answers"].needs == {"artifact": "quantize", "questions": "questions"}
    assert names["answers"].toolchain == names["evaluate"].toolchain
    assert names["answers"].after == names["evaluate"].after
    assert names["gates"].needs["answers"] == "answers"
    assert names["package"].needs["answers"] == "answers"


def test_builds_of_one_original_share_its_answers() -> None:
    one, other = (
        steps(ASKED, f"backend={name}", "quantize={}") for name in ("onnxruntime", "litert")
    )
    assert one["questions"] == other["questions"]
    assert one["answers"].params["backend"] != other["answers"].params["backend"]


def test_more_to_ask_changes_no_other_step() -> None:
    quiet, asking = steps(), steps(ASKED)
    for name in ("baseline", "quantize", "evaluate", "measure", "reference"):
        assert quiet[name] == asking[name]


def test_answers_that_leave_no_room_for_a_prompt_are_refused() -> None:
    with pytest.raises(TargetError, match="leaves no room for a prompt") as caught:
        steps("evaluate.generate={new_tokens: 1024}")
    assert "raise `context`" in (caught.value.hint or "")


def own(folder: Path, content: str | None) -> Path:
    if content is not None:
        (folder / "p.jsonl").write_text(content, "utf-8")
    return recipe_files.write(folder, "own", evaluate="{generate: {prompts: {file: p.jsonl}}}")


def test_prompts_of_the_users_are_taken_from_beside_the_recipe(tmp_path: Path) -> None:
    path = own(tmp_path, json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    plan = plans.planned(path=path)
    (prompts,) = [step for step in plan.steps if step.name == "prompts"]
    assert prompts.outside["files"].files == ("p.jsonl",)
    (questions,) = [step for step in plan.steps if step.name == "questions"]
    assert questions.params["strict"]


def test_a_missing_file_is_told_where_the_recipe_names_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist") as caught:
        plans.planned(path=own(tmp_path, None))
    assert "own.yaml:5:" in caught.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "has no prompts"), ("{}\n", "p.jsonl:1:1: `messages`"), ('{"messages"', "p.jsonl:1:12")],
)
def test_a_bad_file_is_refused_before_anything_is_built(
    tmp_path: Path, content: str, words: str
) -> None:
    with pytest.raises(SourceError) as caught:
        plans.planned(path=own(tmp_path, content))
    assert words in caught.value.message
