"""FreeCP on a Hugging Face CLIP (transformers) in place of open_clip's.

    python train_net.py --register projects/PlugAndPlay/huggingface_clip.py \
        --config-file projects/PlugAndPlay/configs/huggingface_scenes.yaml --eval-only

registers the meta-architecture HuggingFaceFreeCP. In code, any `transformers.CLIPModel` will do:
`HuggingFaceCLIP(model)` is an encoder of FreeCP, and of PurificationHead alone.
"""

from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from freecp_d2 import FreeCP
from freecp_d2.clip import DenseFeatures
from freecp_d2.clip.loading import PRECISIONS
from freecp_d2.clip.text import TextEncoder

try:
    from transformers import CLIPConfig, CLIPModel
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "a Hugging Face CLIP needs transformers: pip install 'freecp_d2[transformers]'"
    ) from None

METHODS = ("maskclip", "sclip", "clearclip")


class TextTower:
    """A CLIPModel's text tower, as :func:`freecp_d2.clip.text.encode_sentences` takes it."""

    def __init__(self, model: CLIPModel):
        self.logit_scale = model.logit_scale
        self.context_length = model.config.text_config.max_position_embeddings
        self._model = model

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeddings (S, D) of token ids (S, context_length)."""
        return self._model.get_text_features(input_ids=tokens).pooler_output


class HuggingFaceCLIP(nn.Module):
    """A frozen transformers CLIPModel with the interface of :class:`freecp_d2.clip.DenseCLIP`.

    Attributes:
        logit_scale: CLIP's temperature, already exponentiated.

    Positional embeddings of another grid are resampled as transformers does it, which is not quite
    what METHOD.md step 1 says: other windows than the trained size give slightly other features.

    Args:
        model: is frozen, put into eval mode, and made to give its attention weights ("eager").
        method: how the last block is read (METHOD.md step 1): maskclip, sclip or clearclip.

    Raises:
        ValueError: an unknown method, or fewer than two blocks.
    """

    def __init__(self, model: CLIPModel, method: str = "clearclip"):
        super().__init__()
        if method not in METHODS:
            raise ValueError(
                f"MODEL.CLIP.METHOD is {method!r}; with a Hugging Face CLIP choose one of "
                f"{', '.join(METHODS)}"
            )
        if len(model.vision_model.encoder.layers) < 2:
            raise ValueError("the image tower has one block; at least 2 are needed for an affinity")
        model.set_attn_implementation("eager")
        self.clip = model.eval().requires_grad_(False)
        self.method = method
        self.logit_scale: float = model.logit_scale.float().exp().item()

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        side = self.clip.config.vision_config.patch_size
        return side, side

    def train(self, mode: bool = True) -> "HuggingFaceCLIP":
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> DenseFeatures:
        """Encode normalised images (B, 3, H, W), each side at least a patch."""
        vision = self.clip.vision_model
        tokens = vision.pre_layrnorm(vision.embeddings(images, interpolate_pos_encoding=True))
        *blocks, last = vision.encoder.layers
        # Block by block: the attention of all heads of all blocks at once would take gigabytes.
        record = tokens.new_zeros(len(tokens), *[tokens.shape[1]] * 2, dtype=torch.float32)
        for block in blocks:
            attended, weights = block.self_attn(block.layer_norm1(tokens))
            record += weights.float().mean(dim=1) / len(blocks)
            tokens = tokens + attended
            tokens = tokens + block.mlp(block.layer_norm2(tokens))
        height, width = self.patch_size
        return DenseFeatures(
            patches=self._project(self._read(last, tokens)[:, 1:]),
            cls=self._project(last(tokens, None)[:, 0]),
            attention=record[:, 1:, 1:],
            grid=(images.shape[2] // height, images.shape[3] // width),
        )

    def encode_dense(self, images: Tensor) -> tuple[Tensor, tuple[int, int], None]:
        """`patches` and `grid` of :meth:`forward`; they hold for any words."""
        features = self(images)
        return features.patches, features.grid, None

    @torch.no_grad()
    def encode_cls(self, images: Tensor) -> Tensor:
        """Ordinary CLIP embeddings (B, D), float32 of unit length, of normalised (B, 3, H, W)."""
        output = self.clip.get_image_features(images, interpolate_pos_encoding=True)
        return F.normalize(output.pooler_output.float(), dim=-1)

    def _read(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """The last block's tokens (B, 1+N, W) by the method."""
        attention, normed = block.self_attn, block.layer_norm1(tokens)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (
            projection(normed).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            for projection in projections
        )
        if self.method == "maskclip":
            attended = value
        else:
            attended = F.scaled_dot_product_attention(query, query, value)
        if self.method == "sclip":
            attended = attended + F.scaled_dot_product_attention(key, key, value)
        dense = attention.out_proj(attended.transpose(1, 2).flatten(2))
        return dense if self.method == "clearclip" else dense + block.mlp(block.layer_norm2(dense))

    def _project(self, tokens: Tensor) -> Tensor:
        embeddings = self.clip.visual_projection(self.clip.vision_model.post_layernorm(tokens))
        return F.normalize(embeddings.float(), dim=-1)


@META_ARCH_REGISTRY.register()
class HuggingFaceFreeCP(FreeCP):
    """FreeCP on a Hugging Face CLIP.

    MODEL.CLIP.NAME is a model of the Hugging Face hub or a folder of `save_pretrained`,
    MODEL.CLIP.PRETRAINED its revision. Text features are encoded anew at every start.

    Raises:
        ValueError: the model has a vocabulary other than CLIP's own.
    """

    @staticmethod
    def build_clip(cfg: CfgNode) -> tuple[HuggingFaceCLIP, TextEncoder]:
        """As :func:`freecp_d2.clip.build.build_clip`."""
        clip, precision = cfg.MODEL.CLIP, cfg.MODEL.CLIP.PRECISION
        if precision == "auto":
            precision = "fp16" if torch.device(cfg.MODEL.DEVICE).type == "cuda" else "fp32"
        model = CLIPModel.from_pretrained(
            clip.NAME, revision=clip.PRETRAINED, dtype=PRECISIONS[precision]
        )
        encoder = HuggingFaceCLIP(model.to(cfg.MODEL.DEVICE), clip.METHOD)
        return encoder, TextEncoder(TextTower(model), clip_tokenizer(model))


def clip_tokenizer(model: CLIPModel) -> SimpleTokenizer:
    """CLIP's own tokenizer, which open_clip and transformers share.

    Raises:
        ValueError: the model has another vocabulary.
    """
    text = model.config.text_config
    tokenizer = SimpleTokenizer(context_length=text.max_position_embeddings)
    if text.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"the CLIP has {text.vocab_size} tokens in place of CLIP's {tokenizer.vocab_size}; "
            "give FreeCP the tokenizer it was trained with"
        )
    return tokenizer


def from_open_clip(model: open_clip.CLIP) -> CLIPModel:
    """A transformers CLIPModel with the weights of an open_clip ViT CLIP, in float32 on the CPU.

    The towers' activation (GELU or QuickGELU), widths and heads are read from the model.
    """
    visual = model.visual
    config = CLIPConfig(
        projection_dim=visual.output_dim,
        text_config={
            **_tower(model.transformer),
            "vocab_size": model.vocab_size,
            "max_position_embeddings": model.context_length,
            "eos_token_id": model.vocab_size - 1,
            "projection_dim": visual.output_dim,
        },
        vision_config={
            **_tower(visual.transformer),
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "projection_dim": visual.output_dim,
        },
    )
    converted = CLIPModel(config)
    source = {key: value.detach().float().cpu() for key, value in model.state_dict().items()}
    state = {
        "logit_scale": source["logit_scale"],
        "text_projection.weight": source["text_projection"].T,
        "visual_projection.weight": source["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": source["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": source["positional_embedding"],
        "vision_model.embeddings.class_embedding": source["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": source["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": source["visual.positional_embedding"],
    }
    renamed = {
        "ln_final.": "text_model.final_layer_norm.",
        "visual.ln_pre.": "vision_model.pre_layrnorm.",
        "visual.ln_post.": "vision_model.post_layernorm.",
        "visual.transformer.resblocks.": "vision_model.encoder.layers.",
        "transformer.resblocks.": "text_model.encoder.layers.",
    }
    inside = {
        ".ln_1.": ".layer_norm1.",
        ".ln_2.": ".layer_norm2.",
        ".attn.": ".self_attn.",
        ".mlp.c_fc.": ".mlp.fc1.",
        ".mlp.c_proj.": ".mlp.fc2.",
    }
    for key, value in source.items():
        prefix = next((prefix for prefix in renamed if key.startswith(prefix)), None)
        if prefix is None:
            continue
        key = renamed[prefix] + key.removeprefix(prefix)
        for old, new in inside.items():
            key = key.replace(old, new)
        if ".in_proj_" in key:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                state[key.replace(".in_proj_", f".{part}_proj.")] = rows
        else:
            state[key] = value
    converted.load_state_dict(state)
    return converted.eval()


def _tower(transformer: open_clip.transformer.Transformer) -> dict[str, Any]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": transformer.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": "gelu" if isinstance(block.mlp.gelu, nn.GELU) else "quick_gelu",
    }
