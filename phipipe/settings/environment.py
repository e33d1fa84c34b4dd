"""The environment that our children get of ours: no secrets, no network where they compute."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from fnmatch import fnmatchcase

from phipipe.settings import config
from phipipe.settings.rows import PASSWORD_IN_URL, SECRET

OFFLINE = dict.fromkeys(
    (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "DO_NOT_TRACK",
    ),
    "1",
) | {"HF_TOKEN_PATH": os.devnull}


def _rows(**groups: str) -> frozenset[str]:
    return frozenset(row for words in groups.values() for row in words.split())


# What a child may know of our environment: these names alone, `*` for any end. Who computes gets
# the first table, who installs (uv, and the compilers that it starts) both. A variable of any other
# name may be a secret.
COMPUTING = _rows(
    person="HOME USER LOGNAME SHELL PATH PWD LANG LANGUAGE LC_* LOCPATH TZ TZDIR SOURCE_DATE_EPOCH",
    terminal="TERM TERMINFO COLORTERM COLUMNS LINES NO_COLOR FORCE_COLOR CLICOLOR INPUTRC",
    folders="TMPDIR TEMP TMP XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME "
    "XDG_RUNTIME_DIR "
    "XDG_CONFIG_DIRS XDG_DATA_DIRS",
    windows="SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT OS APPDATA LOCALAPPDATA PROGRAMDATA "
    "ALLUSERSPROFILE PUBLIC "
    "PROGRAMFILES PROGRAMFILES(*) PROGRAMW6432 COMMONPROGRAMFILES COMMONPROGRAMFILES(*) "
    "COMMONPROGRAMW6432 "
    "USERPROFILE USERNAME USERDOMAIN HOMEDRIVE HOMEPATH COMPUTERNAME NUMBER_OF_PROCESSORS "
    "PROCESSOR_*",
    loader="LD_LIBRARY_PATH LD_PRELOAD LD_AUDIT LD_BIND_NOW DYLD_* NIX_LD NIX_LD_LIBRARY_PATH "
    "GLIBC_TUNABLES MALLOC_* "
    "OBJC_DISABLE_INITIALIZE_FORK_SAFETY",
    python="PYTHONHASHSEED PYTHONWARNINGS PYTHONFAULTHANDLER PYTHONMALLOC PYTHONTRACEMALLOC "
    "PYTHONPYCACHEPREFIX "
    "PYTHONSAFEPATH PYTHONNOUSERSITE PYTHONUSERBASE PYTHONDEVMODE PYTHONOPTIMIZE VIRTUAL_ENV "
    "CONDA_PREFIX",
    threads="OMP_* GOMP_* KMP_* MKL_* OPENBLAS_* NVPL_* GOTO_NUM_THREADS BLIS_* VECLIB_* "
    "NUMEXPR_* TBB_* DNNL_* "
    "ONEDNN_* ATEN_* NPY_* NUMBA_* RAYON_* TOKIO_WORKER_THREADS TOKENIZERS_PARALLELISM",
    processors="CUDA_* CUDNN_* CUBLAS_* NVIDIA_* NCCL_* HIP_* HSA_* ROCM_* ROCR_* "
    "GPU_DEVICE_ORDINAL ZE_* ZES_* SYCL_* "
    "ONEAPI_* IGC_* VK_* OCL_* METAL_* MTL_* ADSP_* HEXAGON_*",
    runtimes="ORT_* ONNX_* OV_* OPENVINO_* NNCF_* MLX_* QNN_* LITERT_* TFLITE_* XNNPACK_* TF_* "
    "XLA_* JAX_* OLIVE_* "
    "TORCH_* TORCHDYNAMO_* TORCHINDUCTOR_* PYTORCH_* TRITON_* GGML_* LLAMA_* TRANSFORMERS_*",
    caches="HF_HOME HF_HUB_CACHE HF_ASSETS_CACHE HF_MODULES_CACHE HF_XET_CACHE "
    "HF_DATASETS_CACHE HUGGINGFACE_HUB_CACHE",
    ours="PHIPIPE_*",
    tests="PYTEST_* COVERAGE_* COV_CORE_*",
)
INSTALLING = _rows(
    indexes="UV_* PIP_* NETRC KEYRING_* PYTHON_KEYRING_BACKEND ARTIFACTS_KEYRING_* VSS_NUGET_* "
    "CLOUDSDK_CONFIG "
    "GOOGLE_APPLICATION_CREDENTIALS DBUS_SESSION_BUS_ADDRESS",
    network="HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy "
    "SSL_CERT_FILE SSL_CERT_DIR SSL_CLIENT_CERT REQUESTS_CA_BUNDLE CURL_CA_BUNDLE",
    tools="CC CXX CPP FC LD AR AS NM RANLIB STRIP OBJCOPY MAKE MAKEFLAGS GNUMAKEFLAGS VERBOSE "
    "NINJA NINJA_STATUS "
    "CMAKE CMAKE_* FORCE_CMAKE SKBUILD_* SETUPTOOLS_* DISTUTILS_* MESON* CCACHE_* SCCACHE_* "
    "PKG_CONFIG PKG_CONFIG_*",
    flags="CFLAGS CXXFLAGS CPPFLAGS FFLAGS LDFLAGS LIBS ARCHFLAGS CPATH C_INCLUDE_PATH "
    "CPLUS_INCLUDE_PATH LIBRARY_PATH",
    more="CUDACXX CUDAHOSTCXX NVCC_* VULKAN_SDK RUSTFLAGS RUSTUP_* RUSTC* CARGO_*",
    mac="SDKROOT DEVELOPER_DIR MACOSX_DEPLOYMENT_TARGET HOMEBREW_PREFIX CONDA_BUILD_SYSROOT",
    visual_studio="INCLUDE LIB LIBPATH EXTERNAL_INCLUDE VSINSTALLDIR VCINSTALLDIR VCTOOLS* "
    "VCIDEINSTALLDIR "
    "VS*COMNTOOLS VSCMD_* VISUALSTUDIOVERSION WINDOWSSDK* WINDOWSLIBPATH UCRTVERSION "
    "UNIVERSALCRTSDKDIR DEVENVDIR "
    "FRAMEWORK* MSSDK PLATFORM",
)
# Of these the installer gets passwords, too: they are what it needs them for.
WITH_PASSWORDS = re.compile(
    r"UV_(?!PUBLISH)|PIP_|\w+_PROXY$|KEYRING_|ARTIFACTS_KEYRING_|VSS_NUGET_", re.IGNORECASE
)
# A second fence beside SECRET, a wider one, for what a `*` lets through.
FENCE = re.compile(
    rf"{SECRET.pattern}|BEARER|OAUTH|CREDS"
    r"|(^|_)(PRIVATE|SIGNING|SESSION|SAS|PIN|SALT|LICENSE|CONN(ECTION)?)(_|$)",
    re.IGNORECASE,
)


def child_environment(*, offline: bool, keep_path: bool = False) -> dict[str, str]:
    """What a process that computes gets of our environment; ``offline``, it keeps every hub client
    off the network.

    ``keep_path``: it imports what we import.
    """
    kept = {
        n: v
        for n, v in os.environ.items()
        if is_among(n, COMPUTING) and not PASSWORD_IN_URL.search(v)
    }
    if keep_path:  # else the toolchain decides what can be imported
        kept |= {
            name: os.environ[name] for name in ("PYTHONPATH", "PYTHONHOME") if name in os.environ
        }
    kept |= {
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }
    # what files say, so that a child, which may be somewhere else, need not look for them
    kept |= {**config.from_files(), config.CONFIG: config.OFF}
    return kept | (OFFLINE if offline else {})


def installer_environment() -> dict[str, str]:
    """What ``uv`` gets of our environment: indexes and their passwords, proxies, compilers, and no
    other secrets."""
    both = COMPUTING | INSTALLING
    return {
        n: v
        for n, v in os.environ.items()
        if is_among(n, both) and (WITH_PASSWORDS.match(n) or not PASSWORD_IN_URL.search(v))
    }


def is_among(name: str, table: Collection[str]) -> bool:
    """Whether ``table`` lets a variable called ``name`` through; none by its beginning alone that
    sounds secret."""
    if name in table:
        return True
    sounds_secret = FENCE.search(name) and not WITH_PASSWORDS.match(name)
    return not sounds_secret and any(fnmatchcase(name, row) for row in table if "*" in row)
