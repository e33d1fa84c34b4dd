"""Names in a folder of ONNX Runtime GenAI: its files, and the nodes that are looked for by name.
Light: faces and sessions read them."""

from __future__ import annotations

MODEL = "model.onnx"
DATA = "model.onnx.data"
CONFIG = "genai_config.json"
PROCESSOR = "processor_config.json"
VISION = "vision.onnx"
EMBEDDING = "embedding.onnx"

LM_HEAD = "/lm_head/MatMul"
LOOKUP = "/model/embed_tokens/Gather"
