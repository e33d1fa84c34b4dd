"""What the gate for packages reads inside files: reference data, checkpoints, names in settings,
Modelfiles."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from testing import hostile_packages, small_package
from testing.hostile_packages import field, node, onnx, text
from testing.small_package import array

from phipipe.package import package, peek_modelfile

WINDOWS, WINDOW, TOP, VOCABULARY = 2, 4, 3, 10


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    first = small_package.written(folder / "small")
    for name, data in reference().items():
        (first / "reference" / name).write_bytes(data)
    hostile_packages.sealed(first)
    return {
        name: hostile_packages.laid_out(first, folder / name, name)
        for name in hostile_packages.BACKENDS
    }


def found(base: Path, folder: Path, name: str, data: bytes) -> list[str]:
    """What ``verify`` says of a copy of ``base`` in which ``name`` holds ``data``."""
    shutil.copytree(base, folder)
    (folder / name).write_bytes(data)
    hostile_packages.sealed(folder)
    return [str(finding) for finding in package.verify(folder)]


def reference(**changed: bytes) -> dict[str, bytes]:
    """Reference data as phipipe writes it; ``changed`` replaces arrays."""
    rows, count = WINDOWS * (WINDOW - 1), WINDOWS * (WINDOW - 1) * TOP
    arrays = {
        "vocabulary": array("<i4", (), struct.pack("<i", VOCABULARY)),
        "ids": array(
            "<i4",
            (WINDOWS, WINDOW - 1, TOP),
            struct.pack(f"<{count}i", *(i % 9 for i in range(count))),
        ),
        "logp": array("<f4", (WINDOWS, WINDOW - 1, TOP), b"\0" * 4 * count),
        "rest": array("<f4", (WINDOWS, WINDOW - 1), b"\0" * 4 * rows),
        "true": array("<f4", (WINDOWS, WINDOW - 1), b"\0" * 4 * rows),
    } | changed
    chat = {"prompt": "a", "rendered": "a", "ids": [1], "answer": [2], "text": "b"}
    return {
        "tokens.npy": array(
            "<i4", (WINDOWS, WINDOW), struct.pack(f"<{WINDOWS * WINDOW}i", *range(8))
        ),
        "top.npz": packed(arrays),
        "baseline.json": text({"skip": 0, "parity_ids": [1, 2], "chats": [chat], "ppl": 2.0}),
    }


def packed(arrays: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return made.getvalue()


def test_reference_data_as_phipipe_writes_it_passes(bases: dict[str, Path]) -> None:
    assert {name: package.verify(folder) for name, folder in bases.items()} == {
        name: [] for name in bases
    }


ODD_TOKENS = {
    "objects in other quotes": array("|O", (1, 2), b"x" * 8).replace(b"'", b'"'),
    "objects in a record": array("<i4", (1, 2), b"x" * 8).replace(b"'<i4'", b"[('a','|O')]"),
    "terabytes": array("<i4", (10**12, 2), b""),
    "more than there is": array("<i4", (1, 3), b"\0" * 8),
    "less than there is": array("<i4", (1, 1), b"\0" * 8),
    "none": array("<i4", (0, 2), b""),
    "floats": array("<f4", (1, 2), b"\0" * 8),
    "one row": array("<i4", (2,), b"\0" * 8),
    "below zero": array("<i4", (1, 2), b"\xff" * 8),
    "other bytes": b"x" * 200,
}


@pytest.mark.parametrize("name", ODD_TOKENS)
def test_tokens_that_numpy_or_a_runtime_would_trip_over_are_refused(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    (said,) = found(bases["onnxruntime"], tmp_path / "p", "reference/tokens.npy", ODD_TOKENS[name])[
        :1
    ]
    assert said.startswith("reference/tokens.npy: ")


ODD_ARRAYS: dict[str, dict[str, bytes]] = {
    "beyond the vocabulary": {"vocabulary": array("<i4", (), struct.pack("<i", 8))},
    "ids alone fit": {
        "vocabulary": array("<i4", (), struct.pack("<i", 7)),
        "ids": array("<i4", (2, 3, 1), b"\0" * 24),
        "logp": array("<f4", (2, 3, 1), b"\0" * 24),
    },
    "of another shape": {"true": array("<f4", (2, 2), b"\0" * 16)},
    "negative": {"ids": array("<i4", (WINDOWS, WINDOW - 1, TOP), b"\xff" * 72)},
    "terabytes": {"logp": array("<f4", (10**6, 10**6, 3), b"")},
    "one more": {"other": b""},
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_arrays_that_do_not_fit_each_other_are_refused(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    data = reference(**ODD_ARRAYS[name])["top.npz"]
    assert found(bases["onnxruntime"], tmp_path / "p", "reference/top.npz", data)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"skip": -1, "parity_ids": [], "chats": []},
        {"skip": 0, "parity_ids": ["x"], "chats": []},
        {"skip": 0, "parity_ids": [], "chats": [{"text": "\x1b]0;X\x07"}]},
        {"skip": 0, "parity_ids": [], "chats": [{}] * 1000},
    ],
)
def test_a_baseline_that_is_none_is_refused(
    bases: dict[str, Path], tmp_path: Path, told: object
) -> None:
    assert found(bases["llamacpp"], tmp_path / "p", "reference/baseline.json", text(told))


def checkpoint(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else text(header)
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}},
        {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"\x1b]0;X\x07": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"w": []},
        b'{"w":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"w":',
    ],
)
def test_a_checkpoint_is_read_strictly_in_packages_too(
    bases: dict[str, Path], tmp_path: Path, backend: str, header: object
) -> None:
    (said,) = found(
        bases[backend], tmp_path / "p", "model.safetensors", checkpoint(header, b"\0" * 4)
    )
    assert said.isprintable()


@pytest.mark.parametrize(
    "places", [{"w": "../../evil.safetensors"}, {"w": "/x.safetensors"}, {"w": 1}, [], None]
)
def test_an_index_names_files_of_the_package_alone(
    bases: dict[str, Path], tmp_path: Path, places: object
) -> None:
    name = "model.safetensors.index.json"
    assert found(bases["torch"], tmp_path / "p", name, text({"weight_map": places}))
    good = text({"weight_map": {"w": "model.safetensors"}})
    assert not found(bases["torch"], tmp_path / "good", name, good)


@pytest.mark.parametrize(
    ("name", "key"),
    [("config.json", "transformers_weights"), ("config.json", "configuration_files")]
    + [
        ("tokenizer_config.json", key)
        for key in ("gguf_file", "fast_tokenizer_files", "tekken_file")
    ],
)
def test_no_setting_of_transformers_opens_a_file_elsewhere(
    bases: dict[str, Path], tmp_path: Path, name: str, key: str
) -> None:
    told = json.loads((bases["torch"] / name).read_text("utf-8"))
    for number, value in enumerate(("../../x", "/etc/passwd", ["a.json", "..\\x"])):
        (said,) = found(bases["torch"], tmp_path / str(number), name, text({**told, key: value}))
        assert key in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**6),
        ("hidden_size", 10**9),
        ("vocab_size", 10**12),
        ("num_attention_heads", 0),
        ("head_dim", -1),
        ("rope_theta", "x"),
        ("quantization", "x"),
        ("torch_dtype", "os.system"),
        ("quantization", {"bits": 99}),
        ("quantization", {"lm_head": {"group_size": 2**40}}),
        ("text_config", {"num_hidden_layers": 10**6}),
        ("note", "\x1b]0;X\x07"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_packages_config_has_the_bounds_of_a_checkpoints(
    bases: dict[str, Path], tmp_path: Path, backend: str, key: str, value: object
) -> None:
    told = json.loads((bases[backend] / "config.json").read_text("utf-8"))
    (said,) = found(bases[backend], tmp_path / "p", "config.json", text({**told, key: value}))
    assert said.isprintable()


@pytest.mark.parametrize("name", ["%s%s%n", "%99999999d", "x.%d.%d", "%", "%%", "%dd%"])
def test_a_name_of_a_tensor_is_no_other_format_than_a_layers_number(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    for number, (value, good) in enumerate(
        ((name, False), ("past_key_values.%d.key", True), ("input_ids", True))
    ):
        made = json.loads(json.dumps(hostile_packages.GENAI))
        made["model"]["decoder"]["inputs"] = {"past_key_names": value}
        said = found(bases["onnxruntime"], tmp_path / str(number), "genai_config.json", text(made))
        assert (not said) == good


def test_no_number_of_a_field_means_another_one_to_readers_of_32_bits(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    evil = field(1, node(b"Evil", b"evil.ops"))
    for number, name in enumerate((2**29 + 7, 2**29, 2**60 + 7, 0)):
        assert found(
            bases["onnxruntime"], tmp_path / str(number), "model.onnx", onnx() + field(name, evil)
        )


@pytest.mark.parametrize(
    ("key", "kind", "number"),
    [
        *((b"phi3.block_count", "<I", number) for number in (0, 2**31 - 1, 2**32 - 1)),
        (b"llama.block_count", "<i", -1),
        (b"phi3.context_length", "<I", 2**32 - 1),
        (b"phi3.attention.head_count", "<I", 0),
        (b"phi3.attention.layer_norm_rms_epsilon", "<f", float("nan")),
        (b"phi3.attention.layer_norm_rms_epsilon", "<f", -1e-5),
        (b"general.alignment", "<I", 0),
        (b"split.count", "<H", 3),
        (b"\x1b]0;X\x07", "<I", 1),
    ],
)
def test_numbers_over_which_llama_cpp_ends_the_process_are_refused(
    bases: dict[str, Path], tmp_path: Path, key: bytes, kind: str, number: float
) -> None:
    types = {"<I": 4, "<i": 5, "<H": 2, "<f": 6}
    pair = hostile_packages.pair(key, types[kind], struct.pack(kind, number))
    (said,) = found(
        bases["llamacpp"], tmp_path / "p", "model.gguf", hostile_packages.gguf(pairs=(pair,))
    )
    assert said.isprintable()
    usual = hostile_packages.pair(b"phi3.block_count", 4, struct.pack("<I", 32))
    assert not found(
        bases["llamacpp"], tmp_path / "good", "model.gguf", hostile_packages.gguf(pairs=(usual,))
    )


@pytest.mark.parametrize(
    "name", ["LICENSE.vbs", "LICENSE.command", "NOTICE.hta", "LICENSE.desktop", "NOTICE.scr"]
)
def test_a_licence_is_nothing_that_a_desktop_runs(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    assert found(bases["litert"], tmp_path / "p", name, b"x")
    assert not found(bases["litert"], tmp_path / "good", "LICENSE-APACHE.txt", b"x")


@pytest.mark.parametrize(
    "lines",
    [
        'SYSTEM """a""" """\nADAPTER x\n"""',
        '# """\nADAPTER x\n# """',
        'SYSTEM ""\u200b"a"""\nADAPTER x\n""\u200b"\n"""',
        'TEMPLATE """a"""\rADAPTER x\n"""',
        'TEMPLATE """a\n"""\t \nADAPTER x\n"""b"""',
        "PARAMETER adapter ./x",
        "PARAMETER model /x",
        "parameter Adapter x",
        "FROM ./model.gguf x",
        'LICENSE """',
        "DRAFT x",
        "\u200bADAPTER x",
    ],
)
def test_a_modelfile_is_read_as_ollama_reads_it(lines: str) -> None:
    assert list(peek_modelfile.problems(f"FROM ./model.gguf\n{lines}\n"))


@pytest.mark.parametrize(
    "lines",
    [
        'TEMPLATE """{{ .X }}\nADAPTER is a word\n"""',
        'TEMPLATE """{{ if eq "a" .X }}"b""""',
        'PARAMETER stop "<|end|>"\nPARAMETER stop """a"b"""\nPARAMETER num_ctx 4096',
        '# a remark with """ in it\n\nSYSTEM """a """ b"""',
        "FROM ./model.gguf\r",
    ],
)
def test_a_modelfile_that_phipipe_writes_passes(lines: str) -> None:
    assert not list(peek_modelfile.problems(f"FROM ./model.gguf\n{lines}\n"))
