"""Models and texts from a hub, with the hub's real client against one on this machine."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from testing import hub_server
from testing.clock import within
from testing.hub_server import Fault, Hub
from testing.kitchen import Kitchen
from testing.places import ROOT
from testing.plans import planned
from testing.shell import Run

from phipipe import backends
from phipipe.errors import SourceError, StoreError
from phipipe.execution import finished
from phipipe.execution.bench import Bench
from phipipe.execution.results import Result, Waiting
from phipipe.hub import client, exchange, failures, pin
from phipipe.hub import take as hub
from phipipe.hub import view as hub_view
from phipipe.hub.failures import Pace
from phipipe.models import checkpoints
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.settings import Settings
from phipipe.store.records import Stored
from phipipe.store.store import Store

TINY = hub.BUILTIN_MODELS["tiny-phi3"]
WEIGHTS = "model.safetensors"
CANARY = "hf_canaryCanaryCanary"


@pytest.fixture(autouse=True)
def own_hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's token or hub cache."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "hf"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(exchange.library().constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(
        failures,
        "PACE",
        Pace(attempts=3, first_s=0.01, longest_s=0.02, stall_s=1.0, asked_s=0.1),
    )
    return home


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server.of_folder(TINY) as running:
        running.files["evil.py"] = b"raise SystemExit"
        running.files["old.bin"] = b"\x80\x04"
        running.files["lib.so"] = b"\x7fELF"
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def source(served: Hub, **changes: str) -> str:
    told = {"repo": served.repo, "revision": served.commit} | changes
    return f"source={{repo: {told['repo']}, revision: {told['revision']}}}"


def made(
    name: str,
    planned: Plan,
    cache: Path,
    told: Callable[[int, int, str], None] = lambda *report: None,
) -> Result:
    """The result of the step ``name``, which needs no other; ``told`` hears how far it is."""
    store = Store(cache)
    bench = Bench(store, Settings.read(), print)
    step = next(step for step in planned.steps if step.name == name)
    with store.session():
        found = bench.look(step, {}, {})
        return bench.make(found, {}, told) if isinstance(found, Waiting) else found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def allowed() -> dict[str, bytes]:
    return {name: (TINY / name).read_bytes() for name in checkpoints.files(TINY)}


def test_a_plan_needs_headers_only_and_the_second_needs_nobody(served: Hub) -> None:
    first = planned(source(served))
    assert first.checkpoint.parameters == checkpoints.read(TINY).parameters
    assert served.sent(WEIGHTS) <= hub_view.HEAD_BYTES
    asked = len(served.seen)
    again = planned(source(served))
    assert len(served.seen) == asked
    assert again.steps[0] == first.steps[0]


def test_the_step_brings_the_published_files_and_never_code(served: Hub, own_cache: Path) -> None:
    result = made("source", planned(source(served)), own_cache)
    assert contents(result.stored.path) == allowed()
    assert not {"evil.py", "old.bin", "lib.so", "README.md"} & {seen.name for seen in served.seen}
    (parts,) = (own_cache / "hub").rglob("parts")
    assert not list(parts.iterdir())
    assert made("source", planned(source(served)), own_cache).cached
    assert served.sent(WEIGHTS) <= len(served.files[WEIGHTS]) + hub_view.HEAD_BYTES


def test_a_download_says_how_far_it_is(served: Hub, own_cache: Path) -> None:
    served.pause_s = 0.003
    told: list[tuple[int, int, str]] = []
    made("source", planned(source(served)), own_cache, lambda *report: told.append(report))
    told = [report for report in told if report[2] == "MiB"]  # then the weights are looked at
    assert told[-1] == (9, 9, "MiB")
    assert told == sorted(told)
    assert len({done for done, _, _ in told}) > 1


@pytest.mark.parametrize(
    "name",
    ["modeling_phi3.py", "pytorch_model.bin", "x.pt", "lib.so", "x.dll", "a/model.safetensors",
     "..\\x.safetensors", "C:x.safetensors", "x\n.safetensors", "config.json.py", "", "..",
     "tokenizer.pkl"],
)  # fmt: skip
def test_nothing_but_plain_data_is_taken(name: str) -> None:
    assert not client.is_allowed(name)


def test_the_same_bytes_from_a_folder_and_from_a_hub_are_one_object(
    served: Hub, own_cache: Path
) -> None:
    here = made("source", planned(), own_cache)
    there = made("source", planned(source(served)), own_cache)
    assert there.stored.digest == here.stored.digest


def test_the_key_says_repository_commit_and_hashes_and_no_place(
    served: Hub, own_cache: Path
) -> None:
    params = json.dumps(planned(source(served)).steps[0].params)
    assert served.commit in params
    assert served.published(WEIGHTS)["lfs"]["sha256"] in params
    assert str(own_cache) not in params
    assert served.url not in params


def test_the_manifest_will_name_the_hub_and_its_licence(served: Hub) -> None:
    (step,) = (step for step in planned(source(served)).steps if step.name == "package")
    told = {name: step.params["source"][name] for name in ("kind", "repo", "revision", "license")}
    assert told == {"kind": "hub", "repo": served.repo, "revision": served.commit, "license": "mit"}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", at=3_000_000),
        Fault("wrong-bytes"),
        Fault("no-range"),
        Fault("status"),
        Fault("stall", at=70_000),
    ],
    ids=lambda fault: fault.kind,
)
def test_faults_of_the_network_are_survived(served: Hub, own_cache: Path, fault: Fault) -> None:
    build = planned(source(served))
    served.faults["*"] = [fault]
    assert contents(made("source", build, own_cache).stored.path) == allowed()


def test_a_plan_survives_a_faulty_hub(served: Hub) -> None:
    served.answers = [(503, {}, b""), (429, {"Retry-After": "0"}, b"")]
    served.faults["*"] = [Fault("cut", at=50), Fault("status"), Fault("no-range")]
    assert planned(source(served)).steps[0].output_bytes == sum(map(len, allowed().values()))


def test_a_repository_that_has_moved_is_followed(served: Hub, own_cache: Path) -> None:
    path = f"/api/models/{served.repo}/revision/{served.commit}?blobs=True"
    served.answers = [(307, {"Location": path}, b"")]
    served.faults[WEIGHTS] = [
        Fault("redirect", to=f"/{served.repo}/resolve/{served.commit}/{WEIGHTS}")
    ] * 2
    assert contents(made("source", planned(source(served)), own_cache).stored.path) == allowed()


def test_two_plans_at_once_do_not_spoil_each_other(served: Hub, own_cache: Path) -> None:
    served.pause_s = 0.02
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: planned(source(served)), range(4)))
    assert len({json.dumps(one.steps[0].params) for one in plans}) == 1
    assert contents(made("source", plans[0], own_cache).stored.path) == allowed()


def no_file(served: Hub) -> None:
    served.faults[WEIGHTS] = [Fault("status", status=404)] * 9


def gate(served: Hub) -> None:
    served.gated, served.token = True, "hf_somebody"


def wrong_hash(served: Hub) -> None:
    served.faults["tokenizer.json"] = [Fault("wrong-bytes")] * 9


def wrong_weights(served: Hub) -> None:
    served.faults[WEIGHTS] = [Fault("wrong-bytes")] * 9


def only_pickles(served: Hub) -> None:
    del served.files[WEIGHTS]


def missing_shard(served: Hub) -> None:
    index = {"weight_map": {"a": WEIGHTS, "b": "model-00002-of-00002.safetensors"}}
    served.files["model.safetensors.index.json"] = json.dumps(index).encode()


def other_commit(served: Hub) -> None:
    served.answers = [
        (200, {}, json.dumps({"id": served.repo, "sha": "d" * 40, "siblings": []}).encode())
    ]


def no_hashes(served: Hub) -> None:
    row = {"rfilename": "config.json"}
    served.answers = [
        (200, {}, json.dumps({"id": served.repo, "sha": served.commit, "siblings": [row]}).encode())
    ]


def stale_shards(served: Hub) -> None:
    for name in ("consolidated.safetensors", "model-00001-of-00002.safetensors"):
        served.files[name] = served.files[WEIGHTS]


def adapter(served: Hub) -> None:
    served.files["adapter_model.safetensors"] = served.files[WEIGHTS]


def other_widths(served: Hub) -> None:
    config = json.loads(served.files["config.json"]) | {"intermediate_size": 1024}
    served.files["config.json"] = json.dumps(config).encode()


def quantized(served: Hub) -> None:
    config = json.loads(served.files["config.json"]) | {
        "quantization_config": {"quant_method": "awq", "bits": 4}
    }
    served.files["config.json"] = json.dumps(config).encode()


def test_weights_that_are_not_the_models_are_not_even_brought(served: Hub, own_cache: Path) -> None:
    plain = planned(source(served))
    stale_shards(served)
    served.commit = "e" * 40
    found = planned(source(served))
    assert {advice.rule for advice in found.warnings} == {"W01"}
    assert found.checkpoint.parameters == plain.checkpoint.parameters
    assert contents(made("source", found, own_cache).stored.path) == allowed()
    assert served.sent("consolidated.safetensors") <= hub_view.HEAD_BYTES


BAD: list[tuple[Callable[[Hub], None], dict[str, str], str, str]] = [
    (lambda hub: None, {"repo": "nobody/nothing"}, "there is no model", "hf auth login"),
    (
        lambda hub: None,
        {"revision": "d" * 40},
        "no revision",
        "write `main` there and run `phipipe pin RECIPE`",
    ),
    (gate, {}, "is gated", "accept it on"),
    (no_file, {}, f"has no file `{WEIGHTS}`", "look at"),
    (wrong_hash, {}, "`tokenizer.json` is not what was published", "proxy"),
    (only_pickles, {}, r"pickles only \(`old.bin`\)", "safetensors"),
    (missing_shard, {}, "index names `model-00002-of-00002.safetensors`", "tree"),
    (adapter, {}, "a LoRA adapter beside it", "source: {base: {…}, adapter: {…}}"),
    (other_widths, {}, "2048 × 256", "tree"),
    (quantized, {}, "AWQ, 4 bits", "16 bits"),
    (other_commit, {}, "answers for dddd", ""),
    (no_hashes, {}, "no usable size and hash", ""),
    (
        lambda hub: hub.answers.extend([(200, {}, b"<html>")] * 9),
        {},
        "does not answer like a hub",
        "again",
    ),
    (lambda hub: hub.answers.extend([(500, {}, b"")] * 9), {}, "answered 500", "again"),
    (lambda hub: hub.answers.append((403, {}, b"")), {}, "does not let you read", "login"),
]


@pytest.mark.parametrize(("spoil", "changes", "words", "hint"), BAD)
def test_a_bad_source_says_what_and_what_to_do(
    served: Hub, spoil: Callable[[Hub], None], changes: dict[str, str], words: str, hint: str
) -> None:
    spoil(served)
    with pytest.raises(SourceError, match=words) as refused:
        planned(source(served, **changes))
    assert refused.value.exit_code == 8
    assert hint in (refused.value.hint or "")


def test_a_shard_with_a_wrong_hash_is_named_and_not_kept(served: Hub, own_cache: Path) -> None:
    build = planned(source(served))
    served.faults[WEIGHTS] = [Fault("wrong-bytes")] * 9
    with pytest.raises(SourceError, match=f"`{WEIGHTS}` is not what was published"):
        made("source", build, own_cache)
    assert not list((own_cache / "hub").rglob("*.part"))
    assert not list((own_cache / "actions").iterdir())


def test_a_network_that_is_not_there_is_an_error(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        SourceError,
        match=r"cannot ask the hub about `someone/tiny`: nothing answers at 127\.0\.0\.1:1$",
    ):
        planned(source(served))
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    with pytest.raises(SourceError, match="HF_ENDPOINT"):
        planned(source(served, revision="e" * 40))


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://[::1",
        "http://[v1.x]",
        "http://127.0.0.1:1/\x1b[31m",
        "http://a b",
        "http://:80",
        "http://me:secret@127.0.0.1:1",
        "file:///etc",
    ],
)
def test_an_address_that_is_none_is_refused_before_the_hubs_client_starts(
    address: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    code, _, stderr = run("init", "someone/tiny")
    assert (code, "HF_ENDPOINT is no address" in stderr) == (SourceError.exit_code, True)
    assert "secret" not in stderr


def test_a_variable_that_the_hubs_client_cannot_start_with_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "soon")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    words = [sys.executable, "-m", "phipipe", "init", "someone/tiny"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == SourceError.exit_code
    assert b"the hub's client does not start" in done.stderr


def test_a_token_opens_a_gated_model_and_is_seen_nowhere(
    served: Hub, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.gated, served.token = True, CANARY
    monkeypatch.setenv("HF_TOKEN", CANARY)
    build = planned(source(served))
    made("source", build, own_cache)
    assert {seen.token for seen in served.seen} == {CANARY}
    assert CANARY not in repr(build)
    for path in own_cache.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()


def test_a_revoked_token_is_told_apart(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    served.token = "hf_other"
    monkeypatch.setenv("HF_TOKEN", CANARY)
    with pytest.raises(SourceError, match="refuses your token") as refused:
        planned(source(served))
    assert CANARY not in refused.value.message
    assert "HF_TOKEN to a new one; public models need none" in str(refused.value.hint)


def test_a_missing_model_is_told_by_whether_there_is_a_token(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    with pytest.raises(SourceError, match="there is no model `nobody/nothing`") as refused:
        planned(source(served, repo="nobody/nothing"))
    assert "your token's account may not read it" in str(refused.value.hint)


def test_a_token_is_not_sent_where_it_could_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    assert client.token() is None
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert client.token() == CANARY


def test_offline_works_with_what_is_there_and_asks_nobody(
    served: Hub, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = planned(source(served))
    asked = len(served.seen)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert planned(source(served)).steps[0] == build.steps[0]
    with pytest.raises(SourceError, match="not in the cache, and HF_HUB_OFFLINE") as refused:
        made("source", build, own_cache)
    assert "unset HF_HUB_OFFLINE" in str(refused.value.hint)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        planned(source(served, revision="e" * 40))
    assert len(served.seen) == asked


def test_offline_finishes_what_was_downloaded_before_a_kill(
    served: Hub, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = planned(source(served))
    (view,) = (own_cache / "hub").rglob("view")
    (view.parent / "parts").mkdir(exist_ok=True)
    part = view.parent / "parts" / f"{WEIGHTS}.part"
    part.write_bytes(served.files[WEIGHTS][:-1] + b"!")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        made("source", build, own_cache)
    part.write_bytes(served.files[WEIGHTS])
    assert contents(made("source", build, own_cache).stored.path) == allowed()


@pytest.fixture
def filled(served: Hub, own_hub_home: Path) -> Path:
    """The hub client's own cache, as it leaves it: blobs named by hash, and a snapshot of links."""
    home = own_hub_home / "hub" / f"models--{served.repo.replace('/', '--')}"
    snapshot = home / "snapshots" / served.commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for name, data in served.files.items():
        published = served.published(name)
        blob = (
            home
            / "blobs"
            / (published["lfs"]["sha256"] if "lfs" in published else published["blob"])
        )
        blob.write_bytes(data)
        (snapshot / name).symlink_to(blob)
    return snapshot


def test_a_hub_cache_serves_without_a_network(
    served: Hub, filled: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = made("source", planned(source(served)), own_cache)
    assert contents(result.stored.path) == allowed()
    assert not served.seen


def test_a_hub_cache_spares_the_download_and_its_damage_is_not_taken(
    served: Hub, filled: Path, own_cache: Path
) -> None:
    build = planned(source(served))
    blob = (filled / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    result = made("source", build, own_cache)
    assert contents(result.stored.path) == allowed()
    assert [seen.name for seen in served.seen] == ["", WEIGHTS]


def test_a_spoiled_view_is_mended(served: Hub, own_cache: Path) -> None:
    build = planned(source(served))
    (view,) = (own_cache / "hub").rglob("view")
    (view / "tokenizer.json").write_text("{}")
    head = (view / WEIGHTS).read_bytes()
    (view / WEIGHTS).write_bytes(head[:100] + b"\xff" + head[101:])
    (view.parent / "listing.json").write_text("{")
    assert planned(source(served)).steps[0] == build.steps[0]


def test_a_disk_without_room_is_said_before_anything_is_loaded(
    served: Hub, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = planned(source(served))
    usage = shutil.disk_usage(own_cache)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match="needs 10 MiB more") as refused:
        made("source", build, own_cache)
    assert refused.value.hint == "set PHIPIPE_CACHE to a larger disk"  # nothing there can go
    assert served.sent(WEIGHTS) <= hub_view.HEAD_BYTES


def test_a_network_that_dies_at_any_request_is_an_error_and_the_next_run_goes_on(
    served: Hub, own_cache: Path
) -> None:
    hints = set()
    for alive in range(30):
        served.requests, served.dies_after = 0, alive
        try:
            result = made("source", planned(source(served)), own_cache)
            break
        except SourceError as error:
            hints.add(error.hint)
        assert served.requests > alive
        assert not list(own_cache.glob("actions/*"))
    assert hints == {failures.GO_ON}
    assert contents(result.stored.path) == allowed()
    assert alive > 0
    assert served.sent(WEIGHTS) <= len(served.files[WEIGHTS]) + hub_view.HEAD_BYTES


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {
        "data/test.txt": b"Once upon a time there was a fox. " * 500,
        "short.txt": b"",
        "latin.txt": b"caf\xe9" * 9,
    }
    with Hub(files, repo="someone/texts") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def dataset(texts: Hub, file: str, key: str = "evaluate") -> str:
    return f"{key}.text={{dataset: {{repo: {texts.repo}, revision: {texts.commit}, file: {file}}}}}"


def test_a_text_comes_from_a_data_set(texts: Hub, own_cache: Path) -> None:
    result = made("text", planned(dataset(texts, "data/test.txt")), own_cache)
    assert contents(result.stored.path) == {"test.txt": texts.files["data/test.txt"]}
    asked = len(texts.seen)
    assert made("text", planned(dataset(texts, "data/test.txt")), own_cache).cached
    assert len(texts.seen) == asked


@pytest.mark.parametrize(
    ("file", "words"),
    [("nothing.txt", "has no file"), ("short.txt", "is empty"), ("latin.txt", "is not UTF-8")],
)
def test_a_text_that_will_not_do_is_refused(
    texts: Hub, own_cache: Path, file: str, words: str
) -> None:
    with pytest.raises(SourceError, match=words):
        made("text", planned(dataset(texts, file)), own_cache)


def test_a_calibration_text_of_a_hub_is_compared_with_the_exam(texts: Hub) -> None:
    sets = (
        "backend=openvino",
        "quantize={awq: true}",
        dataset(texts, "data/test.txt", "calibrate"),
    )
    assert planned(*sets)
    with pytest.raises(Exception, match="calibration text is the evaluation text"):
        planned(*sets, dataset(texts, "data/test.txt"))


DOWNLOAD = """
import sys
from phipipe.hub import client, repository
repo = client.Repository("model", sys.argv[1], sys.argv[2])
_, found = repository.checkpoint_of(repo)
step = repository.source_step(repo, found)
step.folder.mkdir(parents=True, exist_ok=True)
repository.fetch({}, step.folder, step.params)
print(step.folder)
"""


def download(served: Hub, before: str = "") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", before + DOWNLOAD, served.repo, served.commit]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def downloaded(served: Hub) -> dict[str, bytes]:
    process = download(served)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return contents(Path(out.strip()))


@pytest.mark.crash
def test_after_a_kill_at_most_one_mebibyte_comes_twice(served: Hub, own_cache: Path) -> None:
    served.pause_s = 0.005
    for limit in (1_000_000, 4_000_000, 7_000_000):
        process = download(served)
        while served.sent(WEIGHTS) < limit:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.communicate()
    served.pause_s = 0.0
    assert downloaded(served) == allowed()
    twice = served.sent(WEIGHTS) - len(served.files[WEIGHTS]) - hub_view.HEAD_BYTES
    assert twice <= 3 * 2**20


def test_what_was_complete_before_a_kill_is_not_loaded_again(served: Hub, own_cache: Path) -> None:
    assert downloaded(served) == allowed()  # and is killed before the store takes it
    (whole,) = (own_cache / "hub").rglob("whole")
    (whole / f"{WEIGHTS}.123.tmp").write_bytes(b"half a copy")
    (whole / "tokenizer.json").write_bytes(b"{}")
    asked = len(served.seen)
    assert contents(made("source", planned(source(served)), own_cache).stored.path) == allowed()
    assert len(served.seen) == asked
    assert not whole.exists()


def test_a_collection_amid_a_download_takes_nothing_from_it(served: Hub, own_cache: Path) -> None:
    served.pause_s = 0.005
    process = download(served)
    while served.sent(WEIGHTS) < 2_000_000:
        assert process.poll() is None
        time.sleep(0.005)
    assert Store(own_cache).gc(0).removed == ()
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert contents(Path(out.strip())) == allowed()
    assert served.sent(WEIGHTS) <= len(served.files[WEIGHTS]) + hub_view.HEAD_BYTES


def test_a_collection_before_a_download_is_stored_takes_nothing_from_it(
    served: Hub, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, reports = Store.commit, []

    def later(self: Store, *rest: Any) -> Stored:
        reports.append(Store(own_cache).gc(0))
        return commit(self, *rest)

    monkeypatch.setattr(Store, "commit", later)
    assert contents(made("source", planned(source(served)), own_cache).stored.path) == allowed()
    assert [report.removed for report in reports] == [()]


def test_after_a_collection_a_download_begins_anew(served: Hub, own_cache: Path) -> None:
    build = planned(source(served))
    served.faults[WEIGHTS] = [Fault("cut", at=1_000_000)] + [Fault("status", status=403)] * 9
    with pytest.raises(SourceError, match="does not let you read"):
        made("source", build, own_cache)
    report = Store(own_cache).gc(0)
    assert len(report.removed) == 1
    assert report.freed_bytes > 1_000_000
    served.faults.clear()
    assert contents(made("source", build, own_cache).stored.path) == allowed()


@pytest.fixture
def packed(served: Hub, own_cache: Path, tmp_path: Path) -> Path:
    """A package of the served model, whose original the cache has lost, and with it all that the
    hub said."""
    result = made("source", planned(source(served)), own_cache)
    kitchen = Kitchen(tmp_path / "kitchen")
    repo = {"kind": "hub", "repo": served.repo, "revision": served.commit}
    kitchen.params["source"] |= repo
    kitchen.params["recipe"]["source"] = {"repo": served.repo, "revision": served.commit}
    record = Store(own_cache).record(result.key)
    kitchen.params["steps"]["source"] = {
        name: record[name] for name in kitchen.params["steps"]["source"]
    }
    folder = kitchen.cook()
    shutil.rmtree(own_cache)
    return folder


def evaluated(package: Path, cache: Path, given: Path | None = None) -> Plan:
    return finished.plan_evaluation(
        package, Store(cache), print, text=None, tokens=512, source=given
    )


def test_an_original_that_the_cache_lost_comes_from_its_hub_again(
    served: Hub, packed: Path, own_cache: Path
) -> None:
    build = evaluated(packed, own_cache)
    assert build.checkpoint.parameters == checkpoints.read(TINY).parameters
    assert contents(made("source", build, own_cache).stored.path) == allowed()
    asked = len(served.seen)
    assert made("source", evaluated(packed, own_cache), own_cache).cached
    assert len(served.seen) == asked


def test_an_original_in_the_cache_needs_no_hub_even_where_its_answers_are_lost(
    served: Hub, packed: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("source", evaluated(packed, own_cache), own_cache)
    shutil.rmtree(own_cache / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (
        contents(made("source", evaluated(packed, own_cache), own_cache).stored.path) == allowed()
    )


def test_an_original_that_is_damaged_in_the_cache_comes_again(
    served: Hub, packed: Path, own_cache: Path
) -> None:
    stored = made("source", evaluated(packed, own_cache), own_cache).stored
    (stored.path / "config.json").chmod(0o644)
    (stored.path / "config.json").write_text("{}")
    assert (
        contents(made("source", evaluated(packed, own_cache), own_cache).stored.path) == allowed()
    )


def test_an_original_may_be_given(
    served: Hub, packed: Path, own_cache: Path, checkpoint: Path
) -> None:
    asked = len(served.seen)
    found = made("source", evaluated(packed, own_cache, checkpoint), own_cache)
    assert found.stored.place == checkpoint  # read where it lies
    assert {str(output["path"]) for output in found.stored.outputs} == set(allowed())
    assert len(served.seen) == asked
    (checkpoint / "tokenizer_config.json").write_text("{}")
    with pytest.raises(SourceError, match="is not the checkpoint that this package was made from"):
        evaluated(packed, own_cache, checkpoint)


def moved_on(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    served.files["tokenizer_config.json"] += b" "


def forbidden(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    gate(served)


def offline(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(
    ("spoil", "words", "hint"),
    [
        (moved_on, "published with other files", "if you have"),
        (forbidden, "is gated", "accept it"),
        (offline, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"),
    ],
)
def test_an_original_that_cannot_be_had_is_an_error_that_names_the_ways(
    served: Hub,
    packed: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Hub, pytest.MonkeyPatch], None],
    words: str,
    hint: str,
) -> None:
    spoil(served, monkeypatch)
    with pytest.raises(SourceError, match=words) as refused:
        evaluated(packed, own_cache)
    assert hint in str(refused.value.hint)
    assert "--source PATH" in str(refused.value.hint)


@pytest.mark.crash
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process's files are POSIX's")
def test_a_disk_that_fills_keeps_what_came(served: Hub, own_cache: Path) -> None:
    served.pause_s = 0.005
    process = download(
        served,
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))\n",
    )
    said = process.communicate()[1].splitlines()[-1]
    assert "no room left" in said
    assert f"{len(served.files[WEIGHTS])} bytes needed" in said
    (part,) = (own_cache / "hub").rglob("*.part")
    assert part.read_bytes() == served.files[WEIGHTS][:4_000_000]
    assert downloaded(served) == allowed()
    assert served.sent(WEIGHTS) <= len(served.files[WEIGHTS]) + hub_view.HEAD_BYTES + 2**20


def cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "phipipe", *map(str, words)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
    )


RECIPE = """\
# Mine.
name: mine   # a name
source: SOURCE
device: cpu-x86_64
precision: int4
evaluate: {text: {builtin: stories}}
"""


@pytest.fixture
def mine(tmp_path: Path, served: Hub) -> Callable[[str], Path]:
    def write(source: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_bytes(RECIPE.replace("SOURCE", source.replace("REPO", served.repo)).encode())
        return path

    return write


def test_plan_and_download_of_a_served_model_through_the_command_line(
    served: Hub, own_cache: Path, mine: Callable[[str], Path]
) -> None:
    path = mine(f"{{repo: REPO, revision: {served.commit}}}")
    shown = cli("plan", path, "--json")
    assert shown.returncode == 0, shown.stderr
    steps = {step["name"]: step for step in json.loads(shown.stdout)[0]["steps"]}
    assert steps["source"]["output_bytes"] == sum(map(len, allowed().values()))
    assert "/api/agent-harnesses" not in {seen.path for seen in served.seen}
    served.faults[WEIGHTS] = [Fault("status", status=404)]
    refused = cli("run", path, "--out", path.parent / "out")
    assert refused.returncode == 8
    assert f"has no file `{WEIGHTS}`" in refused.stderr
    assert "Traceback" not in refused.stderr


def no_such_file(served: Hub) -> None:
    served.faults[WEIGHTS] += [Fault("status", status=404)] * 9


def revoked(served: Hub) -> None:
    served.faults[WEIGHTS] += [Fault("status", status=401)] * 9


def licence_not_accepted(served: Hub) -> None:
    served.gated = True


def login_page(served: Hub) -> None:
    served.faults[WEIGHTS] += [Fault("html")] * 9


def hub_gone(served: Hub) -> None:
    served.dies_after = served.requests + 1


def commit_gone(served: Hub) -> None:
    served.commit, served.branches, served.faults = "e" * 40, {"main": "e" * 40}, defaultdict(list)


def asks_for_time(served: Hub) -> None:
    served.faults[WEIGHTS] += [Fault("status", status=429, headers={"Retry-After": "3600"})] * 9


PACED = """
import sys
from phipipe import cli
from phipipe.hub import failures
failures.PACE = failures.Pace(attempts=3, first_s=0.01, longest_s=0.02, stall_s=1.0, asked_s=0.1)
sys.argv[0] = "phipipe"
cli.main()
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("spoil", "kept", "words", "hint"),
    [
        (no_such_file, True, f"has no file `{WEIGHTS}`", "look at"),
        (revoked, True, "refuses your token", "hf auth login"),
        (
            licence_not_accepted,
            False,
            "is gated: the account of your token has not accepted its licence",
            "accept it on",
        ),
        (login_page, True, "came a web page", "log in to your network"),
        (wrong_weights, False, f"`{WEIGHTS}` is not what was published", "HF_ENDPOINT"),
        (hub_gone, True, "the connection broke", "run the same command again"),
        (commit_gone, False, "has no revision", "phipipe pin RECIPE"),
        (
            asks_for_time,
            True,
            "answered 429 (Too Many Requests) and asks to wait for 3600 s",
            "run the same command",
        ),
    ],
)
def test_what_ends_a_run_amid_its_download_says_so_and_keeps_what_came(
    served: Hub,
    own_cache: Path,
    mine: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Hub], None],
    kept: bool,
    words: str,
    hint: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    path = mine(f"{{repo: REPO, revision: {served.commit}}}")
    assert cli("plan", path).returncode == 0
    served.faults[WEIGHTS] = [Fault("cut", at=2_000_000)]
    spoil(served)
    command = [sys.executable, "-c", PACED, "run", str(path), "--out", str(path.parent / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT)
    assert ended.returncode == 8
    said = ended.stderr[ended.stderr.index("error: ") :]
    assert words in said
    assert hint in said.partition("try: ")[2]
    parts = {
        path.name: path.read_bytes()
        for path in (own_cache / "hub").rglob("*.part")
        if path.stat().st_size
    }
    assert parts == ({f"{WEIGHTS}.part": served.files[WEIGHTS][:2_000_000]} if kept else {})
    assert not any(record.get("step") == "source" for record in Store(own_cache).records())
    assert not (path.parent / "out").exists()


def test_a_build_of_a_branch_is_refused_with_the_command_that_pins_it(
    mine: Callable[[str], Path],
) -> None:
    for source in ("{repo: REPO, revision: main}", "{repo: REPO}"):
        path = mine(source)
        for command in ("validate", "plan", "run"):
            refused = cli(command, path)
            assert refused.returncode == 2
            assert f"phipipe pin {path}" in refused.stderr


@pytest.mark.crash
def test_a_run_that_is_killed_goes_on_where_it_was(
    served: Hub, own_cache: Path, mine: Callable[[str], Path]
) -> None:
    path = mine(f"{{repo: REPO, revision: {served.commit}}}")
    served.pause_s = 0.005
    with subprocess.Popen(
        [sys.executable, "-m", "phipipe", "run", path], stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        while served.sent(WEIGHTS) < 5_000_000:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    served.pause_s = 0.0
    assert contents(made("source", planned(path=path), own_cache).stored.path) == allowed()
    assert served.sent(WEIGHTS) <= len(served.files[WEIGHTS]) + hub_view.HEAD_BYTES + 2**20


def test_the_command_line_never_shows_a_token(
    served: Hub, own_cache: Path, mine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mine(f"{{repo: REPO, revision: {served.commit}}}")
    served.gated, served.token = True, "hf_other"
    monkeypatch.setenv("HF_TOKEN", CANARY)
    for command in (("plan", path), ("pin", mine("{repo: REPO}")), ("run", path, "--json")):
        refused = cli(*command)
        assert refused.returncode in (2, 8), refused.stderr
        assert CANARY not in refused.stdout + refused.stderr
    assert CANARY in {seen.token for seen in served.seen}


@pytest.mark.crash
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one child alone")
@pytest.mark.parametrize("silent", [False, True], ids=["busy", "stalled"])
def test_ctrl_c_ends_a_download_soon(
    served: Hub, mine: Callable[[str], Path], silent: bool
) -> None:
    path = mine(f"{{repo: REPO, revision: {served.commit}}}")
    assert cli("plan", path).returncode == 0
    served.pause_s = 0.005
    served.faults[WEIGHTS] = [Fault("stall", at=2_000_000)] if silent else []
    with subprocess.Popen(
        [sys.executable, "-m", "phipipe", "run", path], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        while served.sent(WEIGHTS) < 2_000_000:
            assert process.poll() is None
            time.sleep(0.005)
        with within(5):
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=20)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said


PINS = [
    ("{repo: REPO, revision: main}  # from main", "{repo: REPO, revision: COMMIT}  # from main"),
    ("{repo: REPO, revision: 'main'}", "{repo: REPO, revision: COMMIT}"),
    ("{repo: REPO}  # all", "{repo: REPO, revision: COMMIT}  # all"),
    ("{repo: REPO, revision: }", "{repo: REPO, revision: COMMIT }"),
    (
        "\n  repo: REPO  # the model\n  revision: main # b",
        "\n  repo: REPO  # the model\n  revision: COMMIT # b",
    ),
    ("\n  repo: REPO  # the model", "\n  repo: REPO  # the model\n  revision: COMMIT"),
    ("\r\n  repo: REPO", "\r\n  repo: REPO\r\n  revision: COMMIT"),
    ("\n  revision: main\n  repo: REPO", "\n  revision: COMMIT\n  repo: REPO"),
]


@pytest.mark.parametrize(("before", "after"), PINS)
@pytest.mark.parametrize(
    "commit", ["a1" * 20, "1" * 40, "12e4" + "5" * 36], ids=["hex", "digits", "float"]
)
def test_pin_writes_the_commit_and_nothing_else(
    served: Hub, mine: Callable[[str], Path], before: str, after: str, commit: str
) -> None:
    served.branches["main"] = commit
    path = mine(before)
    assert [(one.revision, one.commit) for one in pin.pin(path)] == [("main", commit)]
    written = commit if commit.startswith("a1") else f'"{commit}"'
    expected = RECIPE.replace(
        "SOURCE", after.replace("REPO", served.repo).replace("COMMIT", written)
    )
    assert path.read_bytes().decode() == expected
    (build,) = loading.load(path, options=backends.OptionsOf())
    assert build.recipe.source.revision == commit
    assert pin.pin(path) == []


@pytest.mark.full
def test_a_branch_that_moves_after_pinning_changes_nothing(
    served: Hub, own_cache: Path, mine: Callable[[str], Path]
) -> None:
    path = mine("{repo: REPO, revision: main}")
    assert cli("pin", path).stdout.endswith(f"{served.repo} main → {served.commit}\n")
    assert "pinned already" in cli("pin", path).stdout
    served.branches["main"] = "f" * 40
    assert contents(made("source", planned(path=path), own_cache).stored.path) == allowed()


def test_pin_finds_data_sets_in_variants_too(texts: Hub, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = (
        f"evaluate: {{text: {{dataset: {{repo: {texts.repo}, revision: v1, file: a}}}}}}\n"
        f"matrix:\n- precision: int8\n  calibrate:\n    text:\n      dataset: {{file: b, repo: "
        f"{texts.repo}}}\n"
    )
    path.write_text(text)
    texts.branches |= {"main": "b" * 40, "v1": "c" * 40}
    assert {one.revision: one.commit for one in pin.pin(path)} == {"v1": "c" * 40, "main": "b" * 40}
    repo = texts.repo
    expected = text.replace("v1", "c" * 40).replace(
        f"b, repo: {repo}", f"b, repo: {repo}, revision: {'b' * 40}"
    )
    assert path.read_text() == expected


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{repo: a/b, revision: main}", "there is no model"),
        ("{repo: REPO, revision: dev}", "`dev`"),
    ],
)
def test_what_cannot_be_pinned_leaves_the_file_alone(
    mine: Callable[[str], Path], source: str, words: str
) -> None:
    path = mine(source)
    before = path.read_bytes()
    with pytest.raises(SourceError, match=words):
        pin.pin(path)
    assert path.read_bytes() == before


def test_pin_needs_a_network(mine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        pin.pin(mine("{repo: REPO}"))
