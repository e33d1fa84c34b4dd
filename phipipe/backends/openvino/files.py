"""Names of the files in a folder that OpenVINO serves; those of models that see are
openvino-genai's."""

from __future__ import annotations

MODEL = "openvino_model.xml"
TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
LANGUAGE, EMBEDDING = "openvino_language_model.xml", "openvino_text_embeddings_model.xml"
VISION, PROJECTION = "openvino_vision_embeddings_model.xml", "openvino_vision_projection_model.xml"
