"""Files of settings: which one counts, what a stranger's may not do, and how mistakes are named."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import documents
from testing.places import QUICKSTART
from testing.shell import Run

from phipipe.errors import RecipeError
from phipipe.settings import Settings, child_environment, config, toml
from phipipe.settings import given as given_variables
from phipipe.settings.rows import SETTINGS, Kind

TRUSTED_ONLY = {
    *("keep", "sources", "compute"),
    *("cache", "toolchains", "memory_limit_gib", "preflight", "remote", "remote_mode", "trust"),
}
FREE = {"toolchain", "step_timeout_s", "idle_timeout_s"}
EXAMPLES = {
    "cache": '"somewhere"',
    "keep": '"artifacts"',
    "sources": '"copy"',
    "toolchains": '"tools"',
    "toolchain": '"current"',
    "compute": '"cpu"',
    "step_timeout_s": "60",
    "idle_timeout_s": "1.5",
    "memory_limit_gib": "8",
    "preflight": "false",
    "remote": '"s3://bucket/prefix"',
    "remote_mode": '"read"',
    "trust": '"trust.yaml"',
}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own file, still empty; the current folder is a project's, empty too."""
    (tmp_path / "home").mkdir()
    (tmp_path / "project" / "deep").mkdir(parents=True)
    file = tmp_path / "home" / "config.toml"
    file.write_text("", "utf-8")
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv("PHIPIPE_CONFIG", str(file))
    monkeypatch.chdir(tmp_path / "project" / "deep")
    return file


@pytest.fixture
def project(user: Path) -> Path:
    """The project's file, still empty, one folder above the current one."""
    file = user.parents[1] / "project" / "phipipe.toml"
    file.write_text("", "utf-8")
    return file


def refusal(file: Path, text: str) -> RecipeError:
    file.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        Settings.read()
    assert caught.value.exit_code == 2
    return caught.value


def test_every_setting_but_import_roots_can_stand_in_the_users_file(user: Path) -> None:
    assert set(EXAMPLES) == {setting.key for setting in SETTINGS if setting.in_files}
    user.write_text("".join(f"{key} = {text}\n" for key, text in EXAMPLES.items()), "utf-8")
    found = Settings.read()
    assert (found.cache, found.toolchains) == (user.parent / "somewhere", user.parent / "tools")
    assert (found.keep_all, found.copies_sources, found.borrows_sources) == (False, True, False)
    assert (found.step_timeout_s, found.idle_timeout_s, found.memory_limit_gib) == (60, 1.5, 8)
    assert (found.use_current, found.preflight, found.compute) == (True, False, "cpu")
    assert (found.remote, found.remote_writes) == ("s3://bucket/prefix", False)
    assert found.trust == user.parent / "trust.yaml"


def test_the_environment_beats_the_project_and_the_project_the_user(
    user: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.write_text("step_timeout_s = 1\nidle_timeout_s = 1\nmemory_limit_gib = 1\n", "utf-8")
    project.write_text("step_timeout_s = 2\nidle_timeout_s = 2\n", "utf-8")
    monkeypatch.setenv("PHIPIPE_STEP_TIMEOUT_S", "3")
    found = Settings.read()
    assert (found.step_timeout_s, found.idle_timeout_s, found.memory_limit_gib) == (3, 2, 1)
    origins = {key: value.origin for key, value in config.values().items()}
    assert origins == {
        "step_timeout_s": "environment",
        "idle_timeout_s": f"{project}:2",
        "memory_limit_gib": f"{user}:3",
    }


def test_the_nearest_project_file_counts_alone(project: Path) -> None:
    project.write_text("step_timeout_s = 1\nidle_timeout_s = 1\n", "utf-8")
    (project.parent / "deep" / "phipipe.toml").write_text("step_timeout_s = 2\n", "utf-8")
    found = Settings.read()
    assert (found.step_timeout_s, found.idle_timeout_s) == (2, None)


def test_files_can_be_switched_off(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write_text("no toml at all", "utf-8")
    monkeypatch.setenv("PHIPIPE_CONFIG", "off")
    assert Settings.read().step_timeout_s is None


def test_a_file_that_is_named_and_missing_is_said(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_CONFIG", "nowhere.toml")
    with pytest.raises(RecipeError, match=r"PHIPIPE_CONFIG is `nowhere\.toml`"):
        Settings.read()


# A stranger's project


@pytest.mark.parametrize("key", sorted(TRUSTED_ONLY))
def test_a_project_needs_trust_for_what_can_do_harm(project: Path, key: str) -> None:
    error = refusal(project, f"\n{key} = {EXAMPLES[key]}\n")
    assert f"{project}:2:1: `{key}` needs your trust" in error.message
    assert "phipipe config trust" in str(error.hint)
    assert f"PHIPIPE_{key.upper()}" in str(error.hint)


@pytest.mark.parametrize("key", sorted(FREE))
def test_a_project_sets_what_is_harmless_without_trust(project: Path, key: str) -> None:
    project.write_text(f"{key} = {EXAMPLES[key]}\n", "utf-8")
    assert Settings.read() != Settings.read({"PHIPIPE_CONFIG": "off"})


def test_every_setting_is_harmless_or_needs_trust() -> None:
    assert {s.key for s in SETTINGS if s.asks_trust and s.in_files} == TRUSTED_ONLY
    assert {s.key for s in SETTINGS if not s.asks_trust} == FREE


def test_trust_ends_with_the_first_change(run: Run, project: Path) -> None:
    os.chdir(project.parent)
    project.write_text('remote = "s3://ours"\n', "utf-8")
    code, out, err = run("config", "trust", project)
    assert (code, err) == (0, "")
    assert "trusted as it is now" in out
    os.chdir(project.parent)
    assert Settings.read().remote == "s3://ours"
    error = refusal(project, 'remote = "s3://theirs"\n')
    assert "the file has changed since you trusted it" in error.message


def test_trust_is_for_one_path(project: Path) -> None:
    project.write_text('remote = "s3://ours"\n', "utf-8")
    config.trust(project)
    copy = project.parent / "deep" / "phipipe.toml"
    copy.write_bytes(project.read_bytes())
    with pytest.raises(RecipeError, match="you have not trusted this file"):
        Settings.read()


def test_what_the_environment_decides_needs_no_trust(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_text('remote = "s3://theirs"\nstep_timeout_s = 1\n', "utf-8")
    monkeypatch.setenv("PHIPIPE_REMOTE", "s3://mine")
    found = Settings.read()
    assert (found.remote, found.step_timeout_s) == ("s3://mine", 1)


@pytest.mark.parametrize("note", ["", "no json", "[1]", '{"a": 1}', "[" * 60_000])
def test_a_damaged_note_of_trust_trusts_nobody(project: Path, note: str) -> None:
    project.write_text('cache = "c"\n', "utf-8")
    config.trust(project)
    (project.parents[1] / "home" / "trusted.json").write_text(note, "utf-8")
    with pytest.raises(RecipeError, match="you have not trusted"):
        Settings.read()


@pytest.mark.parametrize("whose", ["user", "project"])
def test_import_roots_are_never_taken_from_a_file(user: Path, project: Path, whose: str) -> None:
    error = refusal(user if whose == "user" else project, 'worker_path = "/tmp"\n')
    assert "`worker_path` is never taken from a file" in error.message
    assert "PHIPIPE_WORKER_PATH" in str(error.hint)


@pytest.mark.parametrize("key", ["hf_token", "HF_TOKEN", "aws_secret_access_key", "password"])
def test_a_secret_is_refused_and_not_repeated(user: Path, key: str) -> None:
    error = refusal(user, f'{key} = "canary-314"\n')
    assert f"{user}:1:1: `{key}` sounds like a secret" in error.message
    assert "canary-314" not in str(error)


def test_credentials_in_an_address_are_refused_and_not_repeated(user: Path) -> None:
    error = refusal(user, 'remote = "s3://me:canary-314@bucket"\n')
    assert f"{user}:1:1: `remote` holds credentials" in error.message
    assert "canary-314" not in f"{error}{error.hint}"


# Mistakes


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('cashe = "a"', "1:1", "unknown setting `cashe`; did you mean `cache`?"),
        ("\n  step_timout_s = 1", "2:3", "did you mean `step_timeout_s`?"),
        ('PHIPIPE_CACHE = "a"', "1:1", "did you mean `cache`?"),
        ("# cache\n[cache]\na = 1", "2:1", "`cache` is a mapping"),
        ("[[phipipe]]\ncache = 1", "1:1", "unknown setting `phipipe`"),
        ('step_timeout_s = "60"', "1:1", "not a number; take the quotes away"),
        ("step_timeout_s = true", "1:1", "`step_timeout_s` is true, not a number"),
        ("step_timeout_s = -1", "1:1", "`step_timeout_s` is `-1`"),
        ("step_timeout_s = inf", "1:1", "`step_timeout_s` is `inf`"),
        ("cache = 3", "1:1", "`cache` is `3`"),
        ('cache = ""', "1:1", "`cache` is empty"),
        ('cache = "~phipipe-nobody/x"', "1:1", "no such home folder"),
        ('toolchain = "curent"', "1:1", "`toolchain` is `curent`"),
        ('remote = "ftp://x"', "1:1", "`remote` is `ftp://x`"),
        ("cache = x", "1:9", "this is not TOML"),
        ('cache = "a"\ncache = "b"', "2:1", "this is not TOML"),
        ("cache = ", "1:", "this is not TOML"),
    ],
)
def test_a_mistake_is_named_with_line_and_column(
    user: Path, text: str, place: str, said: str
) -> None:
    error = refusal(user, text)
    assert error.message.startswith(f"{user}:{place}"), error.message
    assert said in error.message
    assert error.hint


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"cache = '\xe9'", b"#" * 70_000, b"a = " + b"[" * 9999]
)
def test_what_is_no_settings_file_is_refused(user: Path, raw: bytes) -> None:
    user.write_bytes(raw)
    with pytest.raises(RecipeError, match=r":1:\d+: ") as caught:
        Settings.read()
    assert "\xe9" not in caught.value.message


def test_a_byte_order_mark_is_no_mistake(user: Path) -> None:
    user.write_bytes(b"\xef\xbb\xbfstep_timeout_s = 5\r\n")
    assert Settings.read().step_timeout_s == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_pipe_called_like_the_file_is_passed_over(user: Path) -> None:
    os.mkfifo("phipipe.toml")
    assert stat.S_ISFIFO(Path("phipipe.toml").stat().st_mode)
    assert Settings.read().step_timeout_s is None


@given(st.text(max_size=40))
def test_any_text_is_settings_or_refused_in_words(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.toml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        environ = {"PHIPIPE_CONFIG": str(file), "PHIPIPE_CACHE": folder}
        try:
            Settings.read(environ)
            refused = None
        except RecipeError as error:
            refused = error.message
        if refused is None:
            assert tomllib.loads(text.encode().decode("utf-8-sig")) == {}
        else:
            assert str(file) in refused


@given(st.sampled_from([s for s in SETTINGS if s.in_files]), st.integers(0, 5), st.integers(0, 5))
def test_the_place_of_a_key_is_found(setting: object, above: int, left: int) -> None:
    key = str(getattr(setting, "key", ""))
    text = "# = \n" * above + " " * left + f"{key} = [1]\n"
    content = toml.Content(path=Path("f"), text=text, table=tomllib.loads(text))
    with pytest.raises(RecipeError, match=f"^f:{above + 1}:{left + 1}: `{key}`"):
        toml.values(content)


# Who gets them


def test_children_get_what_files_say_and_look_for_no_file(user: Path, project: Path) -> None:
    user.write_text('cache = "c"\n', "utf-8")
    project.write_text("step_timeout_s = 7\n", "utf-8")
    environment = child_environment(offline=True)
    assert environment["PHIPIPE_CACHE"] == str(user.parent / "c")
    assert environment["PHIPIPE_STEP_TIMEOUT_S"] == "7.0"
    assert environment["PHIPIPE_CONFIG"] == "off"
    there = Settings.read(environment)
    assert (there.cache, there.step_timeout_s) == (user.parent / "c", 7)


def test_an_exported_schedule_gets_what_files_say(run: Run, user: Path) -> None:
    user.write_text('cache = "nightly cache"\nmemory_limit_gib = 4\n', "utf-8")
    assert given_variables()["PHIPIPE_MEMORY_LIMIT_GIB"] == "4.0"
    code, out, err = run("schedule", "export", "--cron", QUICKSTART)
    assert code == 0, err
    assert f"PHIPIPE_CACHE={user.parent / 'nightly cache'}" in out.replace("\\", "")


def test_no_key_of_a_step_depends_on_files(run: Run, user: Path, own_cache: Path) -> None:
    def keys() -> list[str]:
        steps = json.loads(run("plan", QUICKSTART, "--json")[1])[0]["steps"]
        return [step["key"] for step in steps]

    before = keys()
    user.write_text("step_timeout_s = 900\nmemory_limit_gib = 30\npreflight = false\n", "utf-8")
    assert keys() == before


# The commands


def test_config_show_says_what_holds_and_why(
    run: Run, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.write_text("idle_timeout_s = 9\n", "utf-8")
    monkeypatch.setenv("PHIPIPE_REMOTE_MODE", "read")
    code, out, _ = run("config", "show", "--json")
    rows = {row["variable"]: row for row in documents.fits(("config", "show"), out)}
    assert code == 0
    assert rows["PHIPIPE_IDLE_TIMEOUT_S"]["value"] == "9.0"
    assert rows["PHIPIPE_IDLE_TIMEOUT_S"]["source"] == f"{user}:1"
    assert rows["PHIPIPE_REMOTE_MODE"]["source"] == "environment"
    assert rows["PHIPIPE_CACHE"]["source"] == "default"
    assert rows["PHIPIPE_CACHE"]["value"].endswith("phipipe")
    assert rows["PHIPIPE_WORKER_PATH"]["key"] is None
    code, out, _ = run("config", "show")
    assert code == 0
    assert all(setting.what in out for setting in SETTINGS)


def test_config_path_names_files_that_are_not_there_too(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_CONFIG", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    (tmp_path / "phipipe.toml").write_text("broken", "utf-8")
    code, out, _ = run("config", "path", "--json")
    rows = documents.fits(("config", "path"), out)
    assert code == 0
    assert [(row["kind"], row["exists"], row["trusted"]) for row in rows] == [
        ("project", True, False),
        ("user", False, True),
    ]
    assert "not trusted" in run("config", "path")[1]
    assert run("config", "show")[0] == 2


def test_there_must_be_something_to_trust(run: Run) -> None:
    code, _, err = run("config", "trust")
    assert code == 2
    assert "there is no phipipe.toml" in err


def test_a_file_that_makes_no_sense_cannot_be_trusted(run: Run, user: Path) -> None:
    bad = user.parents[1] / "bad.toml"
    bad.write_text("cashe = 1\n", "utf-8")
    code, _, err = run("config", "trust", bad)
    assert code == 2
    assert "did you mean `cache`?" in err
    assert not (user.parent / "trusted.json").exists()


def test_doctor_names_the_files_that_were_read(run: Run, user: Path) -> None:
    _, out, _ = run("doctor", "--json")
    assert json.loads(out)["settings_files"] == [str(user)]


def test_each_kind_of_setting_has_words() -> None:
    assert {setting.kind for setting in SETTINGS} == set(Kind)
