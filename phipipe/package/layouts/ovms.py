"""OpenVINO Model Server: a package of OpenVINO's and `graph.pbtxt`, the graph that answers chats.

What its code asks for (openvinotoolkit/model_server, docs/llm/reference.md,
src/llm/llm_calculator.proto, src/llm/servable_initializer.cpp): a node of `HttpLLMCalculator` with
the side packet `LLM_NODE_RESOURCES:llm`; `models_path` is looked up beside the graph, `device` is
CPU where nothing is said, and what `plugin_config` holds goes to the pipeline. The folder has the
IR, tokenizer and detokenizer, `chat_template.jinja` or the tokenizer's own, and `config.json`, in
which the server finds the longest context. Where there is no graph, `--task text_generation` makes
the same one in memory (src/graph_export/graph_export.cpp).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from phipipe.package.layout import Built, Facts, Layout, Use

GRAPH = "graph.pbtxt"
DEVICES = {"cpu": "CPU", "intel-gpu": "GPU", "intel-npu": "NPU"}
PORT = 8000
HEAD = """\
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node {
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info {
    tag_index: "LOOPBACK:0"
    back_edge: true
  }
  node_options {
    [type.googleapis.com/mediapipe.LLMCalculatorOptions] {
"""
TAIL = """\
    }
  }
  input_stream_handler {
    input_stream_handler: "SyncSetInputStreamHandler"
    options {
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] {
        sync_set {
          tag_index: "LOOPBACK:0"
        }
      }
    }
  }
}
"""
LENGTHS = {"MAX_PROMPT_LEN": "prompt_length", "MIN_RESPONSE_LEN": "response_length"}
"""What the NPU's pipeline compiles in → the option of `quantize:`."""


def _lengths(facts: Facts) -> Mapping[str, int]:
    if facts.api != "intel-npu":
        return {}
    told = {name: facts.options.get(key) for name, key in LENGTHS.items()}
    return {name: n for name, n in told.items() if type(n) is int and n > 0}


def _makes(facts: Facts) -> Mapping[str, bytes]:
    lines = ['models_path: "./"', f'device: "{DEVICES[facts.api]}"']
    if lengths := _lengths(facts):
        lines.append(f"plugin_config: '{json.dumps(lengths)}'")
    else:
        lines.append("enable_prefix_caching: true")
    options = "".join(f"      {line}\n" for line in lines)
    return {GRAPH: (HEAD + options + TAIL).encode()}


def _use(facts: Facts) -> Use:
    prompt = _lengths(facts).get("MAX_PROMPT_LEN")
    longest = f" --max_prompt_len {prompt}" if prompt else ""
    return Use(
        commands=(
            f"ovms --rest_port {PORT} --model_name {facts.name} --model_path . "
            f"--task text_generation --target_device {DEVICES[facts.api]}{longest}",
        ),
        then=f"It answers at `http://localhost:{PORT}/v3/chat/completions`.",
    )


def _after(facts: Facts) -> Use:
    return Use(
        commands=(f"ovms --rest_port {PORT} --model_name {facts.name} --model_path .",),
        then=f"It answers at `http://localhost:{PORT}/v3/chat/completions`.",
    )


def _refuses(built: Built) -> str | None:
    return None if built.api in DEVICES else f"knows no device `{built.api}`"


LAYOUT = Layout(
    title="OpenVINO Model Server",
    about="Intel's server with OpenAI's endpoints: Linux, Windows, containers.",
    backends={"openvino": ""},
    use=_use,
    after=_after,
    refuses=_refuses,
    makes=_makes,
    needs=("openvino_tokenizer.xml", "openvino_detokenizer.xml"),
    inside=(GRAPH,),
)
