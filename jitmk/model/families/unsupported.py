"""Architectures that people will try and that jitmk does not run yet: what each one is, for the refusal."""

from __future__ import annotations

_EXPERTS = "a mixture of experts"
_LATENT = "a mixture of experts with latent attention (MLA)"
_STATE_SPACE = "a state-space or recurrent model"
_ENCODER = "an encoder, which does not generate"
_ENCODER_DECODER = "an encoder-decoder"
_SEES = "a model that sees"
_HEARS = "a model that hears or speaks"

_KINDS = {
    _EXPERTS: (
        "arctic dbrx dots1 ernie4_5_moe exaone_moe flex_olmo glm4_moe gpt_oss granitemoe granitemoeshared grok-1 "
        "hunyuan_v1_moe jetmoe llama4_text minimax_m2 mixtral nllb_moe olmoe phimoe qwen2_moe qwen3_moe "
        "switch_transformers"
    ),
    _LATENT: "deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 glm4_moe_lite glm_moe_dsa kimi_k2 longcat_flash",
    _STATE_SPACE: (
        "bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba mamba2 minimax nemotron_h "
        "olmo_hybrid qwen3_5_text qwen3_next recurrent_gemma rwkv rwkv7 xlstm zamba zamba2"
    ),
    _ENCODER: (
        "albert bert camembert convbert deberta deberta-v2 distilbert electra ernie eurobert luke modernbert mpnet "
        "nomic_bert rembert roberta xlm-roberta xlm-roberta-xl xlnet"
    ),
    _ENCODER_DECODER: (
        "bart blenderbot encoder-decoder fsmt led longt5 m2m_100 marian mbart mt5 mvp pegasus pegasus_x plbart "
        "prophetnet t5 t5gemma umt5"
    ),
    _SEES: (
        "aria aya_vision blip blip-2 chameleon clip cohere2_vision emu3 fuyu gemma3 gemma3n gemma4 glm4v idefics "
        "idefics2 idefics3 instructblip internvl janus kosmos-2 llama4 llava llava_next llava_onevision mistral3 "
        "mllama ovis2 paligemma pixtral qwen2_vl qwen2_5_vl qwen3_5 qwen3_vl qwen3_vl_moe siglip smolvlm vipllava vit"
    ),
    _HEARS: (
        "bark csm dia granite_speech moshi musicgen phi4_multimodal qwen2_5_omni qwen2_audio qwen3_omni_moe "
        "seamless_m4t speecht5 voxtral wav2vec2 whisper"
    ),
}
_HINTS = {
    "gemma3": 'the text model of it alone, model_type "gemma3_text", is supported',
    "mistral3": 'the text model of it alone, model_type "mistral", is supported',
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}
# Names that say it themselves.
_ENDINGS = {"moe": _EXPERTS, "mamba": _STATE_SPACE, "mamba2": _STATE_SPACE, "vl": _SEES, "vision": _SEES}


def what_it_is(model_type: str) -> str | None:
    """What kind of model a model_type names that jitmk does not run yet, in words; None where that is not known."""
    kind = _KIND_OF.get(model_type) or _ENDINGS.get(model_type.rsplit("_", 1)[-1])
    hint = _HINTS.get(model_type)
    return f"{kind}; {hint}" if kind and hint else kind
