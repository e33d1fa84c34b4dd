"""Phi's neighbours: models of other makers whose decoder layers are arranged as Phi-3's are.

Their layers have two norms, attention with rotary positions, and a gated MLP; they differ from
Phi's in how projections are stored, and in a bias, a norm or a kind of rotary scaling. The values
are those of the published ``config.json``s.
"""

from __future__ import annotations

from phipipe.models.family_configs import PHI4, Config
from phipipe.models.members import NEIGHBOUR, Member
from phipipe.steps import Json

_MARKS = ("hidden_size", "num_hidden_layers", "vocab_size")
_SPM, _BPE = "sentencepiece", "gpt2"


def _config(architecture: str, model_type: str, shape: tuple[int, ...], **more: Json) -> Config:
    """``shape``: hidden size, width of the MLP, layers, heads, heads of keys, vocabulary."""
    hidden, inner, layers, heads, kv_heads, vocabulary = shape
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        **more,
    }


def _llama(*shape: int, **more: Json) -> Config:
    plain: dict[str, Json] = {"attention_bias": False, "mlp_bias": False}
    return _config("LlamaForCausalLM", "llama", shape, **plain | more)


def _llama3(*shape: int, factor: float, tied: bool, head: int = 128) -> Config:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return _llama(
        *shape,
        128256,
        head_dim=head,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
    )


def _smollm2(*shape: int, theta: float) -> Config:
    more: dict[str, Json] = {"max_position_embeddings": 8192, "tie_word_embeddings": True}
    return _llama(*shape, 49152, rope_theta=theta, **more)


def _mistral(*shape: int, **more: Json) -> Config:
    usual: dict[str, Json] = {
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    }
    return _config("MistralForCausalLM", "mistral", shape, **usual | more)


def _qwen(version: int, *shape: int, tied: bool, **more: Json) -> Config:
    usual: dict[str, Json] = {
        "max_position_embeddings": 32768,
        "max_window_layers": shape[2],
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None if version == 3 else 32768,
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
    }
    own = {"head_dim": 128, "attention_bias": False, "max_position_embeddings": 40960}
    return _config(
        f"Qwen{version}ForCausalLM",
        f"qwen{version}",
        shape,
        **usual | (own if version == 3 else {}) | more,
    )


SMOLLM3: Config = _config(
    "SmolLM3ForCausalLM",
    "smollm3",
    (2048, 11008, 36, 16, 4, 128256),
    attention_bias=False,
    mlp_bias=False,
    max_position_embeddings=65536,
    no_rope_layer_interval=4,  # every fourth layer does without positions
    no_rope_layers=[1, 1, 1, 0] * 9,
    rms_norm_eps=1e-06,
    rope_theta=5000000.0,
    sliding_window=None,
    tie_word_embeddings=True,
    use_sliding_window=False,
)


def _gemma3(*shape: int, window: int) -> Config:
    config = _config(
        "Gemma3ForCausalLM",
        "gemma3_text",
        (*shape, 262144),
        attention_bias=False,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=32768,
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-06,
        rope_local_base_freq=10000.0,
        rope_theta=1000000.0,
        sliding_window=window,
        sliding_window_pattern=6,
        tie_word_embeddings=True,
    )
    return {key: value for key, value in config.items() if key != "hidden_act"}


def _member(name: str, row: str, repos: str, config: Config, tokenizer: str = _BPE) -> Member:
    """``repos``: names of one owner, "owner/one two"."""
    owner, _, names = repos.partition("/")
    return Member(
        name=name,
        repos=tuple(f"{owner}/{repo}" for repo in names.split()),
        config=config,
        marks=(*_MARKS, "sliding_window") if config["model_type"] == "mistral" else _MARKS,
        tokenizer=tokenizer,
        group=NEIGHBOUR,
        normal_form="NFC" if config["model_type"].startswith("qwen") else "",
        row=row,
    )


LLAMA_PHI4 = Member(  # some public fine-tunes of Phi-4, and Unsloth's copy of it, are saved so
    name="Phi-4 as Llama",
    repos=("unsloth/phi-4",),
    config=_llama(
        *(5120, 17920, 40, 40, 10, 100352),
        head_dim=128,
        max_position_embeddings=PHI4["max_position_embeddings"],
        rope_theta=PHI4["rope_theta"],
    ),
    marks=_MARKS,
    tokenizer=_BPE,
    row="Phi-4 saved in Llama's layout",
)
_LLAMA3, _MISTRAL, _WINDOWED = (
    "Llama 3.1, 3.2, 3.3",
    "Mistral 7B v0.2, v0.3, Nemo, Ministral 8B",
    "Mistral 7B v0.1",
)
_QWEN2, _QWEN3, _SMOLLM2, _GEMMA3 = "Qwen2.5", "Qwen3", "SmolLM2", "Gemma 3 (text)"
NEIGHBOURS: tuple[Member, ...] = (
    _member(
        "Llama-3.2-1B",
        _LLAMA3,
        "meta-llama/Llama-3.2-1B-Instruct Llama-3.2-1B",
        _llama3(2048, 8192, 16, 32, 8, factor=32.0, tied=True, head=64),
    ),
    _member(
        "Llama-3.2-3B",
        _LLAMA3,
        "meta-llama/Llama-3.2-3B-Instruct Llama-3.2-3B",
        _llama3(3072, 8192, 28, 24, 8, factor=32.0, tied=True),
    ),
    _member(
        "Llama-3.1-8B",
        _LLAMA3,
        "meta-llama/Llama-3.1-8B-Instruct Llama-3.1-8B",
        _llama3(4096, 14336, 32, 32, 8, factor=8.0, tied=False),
    ),
    _member(
        "Mistral-7B-v0.3",
        _MISTRAL,
        "mistralai/Mistral-7B-Instruct-v0.3 Mistral-7B-v0.3",
        _mistral(4096, 14336, 32, 32, 8, 32768),
        _SPM,
    ),
    _member(
        "Mistral-7B-v0.2",
        _MISTRAL,
        "mistralai/Mistral-7B-Instruct-v0.2",
        _mistral(4096, 14336, 32, 32, 8, 32000),
        _SPM,
    ),
    _member(
        "Mistral-Nemo",
        _MISTRAL,
        "mistralai/Mistral-Nemo-Instruct-2407 Mistral-Nemo-Base-2407",
        _mistral(5120, 14336, 40, 32, 8, 131072, head_dim=128, max_position_embeddings=131072),
    ),
    _member(
        "Ministral-8B",
        _MISTRAL,
        "mistralai/Ministral-8B-Instruct-2410",
        _mistral(
            *(4096, 12288, 36, 32, 8, 131072),
            head_dim=128,
            rope_theta=100000000.0,
            sliding_window=32768,
        ),
    ),
    _member(
        "Mistral-7B-v0.1",
        _WINDOWED,
        "mistralai/Mistral-7B-Instruct-v0.1 Mistral-7B-v0.1",
        _mistral(*(4096, 14336, 32, 32, 8, 32000), rope_theta=10000.0, sliding_window=4096),
        _SPM,
    ),
    _member(
        "Qwen2.5-0.5B",
        _QWEN2,
        "Qwen/Qwen2.5-0.5B-Instruct Qwen2.5-0.5B",
        _qwen(2, 896, 4864, 24, 14, 2, 151936, tied=True),
    ),
    _member(
        "Qwen2.5-1.5B",
        _QWEN2,
        "Qwen/Qwen2.5-1.5B-Instruct Qwen2.5-1.5B",
        _qwen(2, 1536, 8960, 28, 12, 2, 151936, tied=True),
    ),
    _member(
        "Qwen2.5-3B",
        _QWEN2,
        "Qwen/Qwen2.5-3B-Instruct Qwen2.5-3B",
        _qwen(2, 2048, 11008, 36, 16, 2, 151936, tied=True),
    ),
    _member(
        "Qwen2.5-7B",
        _QWEN2,
        "Qwen/Qwen2.5-7B-Instruct Qwen2.5-7B",
        _qwen(2, 3584, 18944, 28, 28, 4, 152064, tied=False),
    ),
    _member(
        "Qwen3-0.6B",
        _QWEN3,
        "Qwen/Qwen3-0.6B",
        _qwen(3, 1024, 3072, 28, 16, 8, 151936, tied=True),
    ),
    _member(
        "Qwen3-1.7B",
        _QWEN3,
        "Qwen/Qwen3-1.7B",
        _qwen(3, 2048, 6144, 28, 16, 8, 151936, tied=True),
    ),
    _member(
        "Qwen3-4B", _QWEN3, "Qwen/Qwen3-4B", _qwen(3, 2560, 9728, 36, 32, 8, 151936, tied=True)
    ),
    _member(
        "Qwen3-8B", _QWEN3, "Qwen/Qwen3-8B", _qwen(3, 4096, 12288, 36, 32, 8, 151936, tied=False)
    ),
    _member(
        "SmolLM2-135M",
        _SMOLLM2,
        "HuggingFaceTB/SmolLM2-135M-Instruct SmolLM2-135M",
        _smollm2(576, 1536, 30, 9, 3, theta=100000.0),
    ),
    _member(
        "SmolLM2-360M",
        _SMOLLM2,
        "HuggingFaceTB/SmolLM2-360M-Instruct SmolLM2-360M",
        _smollm2(960, 2560, 32, 15, 5, theta=100000.0),
    ),
    _member(
        "SmolLM2-1.7B",
        _SMOLLM2,
        "HuggingFaceTB/SmolLM2-1.7B-Instruct SmolLM2-1.7B",
        _smollm2(2048, 8192, 24, 32, 32, theta=130000.0),
    ),
    _member("SmolLM3-3B", "SmolLM3", "HuggingFaceTB/SmolLM3-3B SmolLM3-3B-Base", SMOLLM3),
    _member(
        "Gemma-3-270m",
        _GEMMA3,
        "google/gemma-3-270m-it gemma-3-270m",
        _gemma3(640, 2048, 18, 4, 1, window=512),
        _SPM,
    ),
    _member(
        "Gemma-3-1B",
        _GEMMA3,
        "google/gemma-3-1b-it gemma-3-1b-pt",
        _gemma3(1152, 6912, 26, 4, 1, window=512),
        _SPM,
    ),
)
