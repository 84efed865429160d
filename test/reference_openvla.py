"""OpenVLA's published forward pass, written out with torch's functions alone.

After ``modeling_prismatic.py`` of openvla and openvla-oft, timm's ``VisionTransformer`` (pre-norm
blocks, exact GELU, epsilon 1e-6) and the Llama of transformers 4.40 (RMS norm, rotary embeddings in
halves, SwiGLU). It reads the published names of the weights and shares no code with the package.
"""

import torch
import torch.nn.functional as F


def tower(weights, prefix, pixels, heads=16):
    w = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    hidden = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    hidden = hidden.flatten(2).transpose(1, 2) + w["pos_embed"]
    others = 0
    if "cls_token" in w:
        rows = len(hidden)
        own = [w["cls_token"].expand(rows, -1, -1), w["reg_token"].expand(rows, -1, -1)]
        hidden, others = torch.cat([*own, hidden], dim=1), 1 + w["reg_token"].shape[1]
    blocks = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))
    width = hidden.shape[-1]
    for block in range(blocks - 1):
        b = {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"blocks.{block}.")}
        x = F.layer_norm(hidden, (width,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        x = F.linear(x, b["attn.qkv.weight"], b["attn.qkv.bias"])
        q, k, v = x.unflatten(2, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
        share = (q @ k.transpose(2, 3) / (width // heads) ** 0.5).softmax(dim=-1)
        x = (share @ v).transpose(1, 2).flatten(2)
        x = F.linear(x, b["attn.proj.weight"], b["attn.proj.bias"])
        hidden = hidden + x * b.get("ls1.scale_factor", 1.0)
        x = F.layer_norm(hidden, (width,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        x = F.gelu(F.linear(x, b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        x = F.linear(x, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
        hidden = hidden + x * b.get("ls2.scale_factor", 1.0)
    return hidden[:, others:]


def projected(weights, pixels):
    """(N, 6, S, S): three channels for DINOv2, three for SigLIP."""
    first, second = pixels.split(3, dim=1)
    x = torch.cat(
        [
            tower(weights, "vision_backbone.featurizer.", first),
            tower(weights, "vision_backbone.fused_featurizer.", second),
        ],
        dim=2,
    )
    for index in (1, 2, 3):
        x = F.linear(
            x, weights[f"projector.fc{index}.weight"], weights[f"projector.fc{index}.bias"]
        )
        x = F.gelu(x) if index < 3 else x
    return x.flatten(0, 1)[None]


def _rms(x, weight):
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def _rotated(x, position):
    width = x.shape[-1]
    frequency = 10000.0 ** (-torch.arange(0, width, 2).float() / width)
    angle = torch.cat([position[:, None] * frequency] * 2, dim=-1)
    half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], dim=-1)
    return x * angle.cos() + half * angle.sin()


def language(weights, hidden, heads, causal=True):
    """(1, T, width) embeddings to the last hidden states, after the last norm."""
    length, width = hidden.shape[1:]
    position = torch.arange(length).float()
    mask = torch.full((length, length), float("-inf")).triu(1) if causal else 0.0
    prefix = "language_model.model."
    layers = 1 + max(int(k.split(".")[3]) for k in weights if k.startswith(f"{prefix}layers."))
    for layer in range(layers):
        w = {
            k.split(".", 4)[4]: v
            for k, v in weights.items()
            if k.startswith(f"{prefix}layers.{layer}.")
        }
        x = _rms(hidden, w["input_layernorm.weight"])
        q, k, v = (
            F.linear(x, w[f"self_attn.{name}_proj.weight"])
            .unflatten(2, (heads, width // heads))
            .transpose(1, 2)
            for name in "qkv"
        )
        q, k = _rotated(q, position), _rotated(k, position)
        share = (q @ k.transpose(2, 3) / (width // heads) ** 0.5 + mask).softmax(dim=-1)
        x = (share @ v).transpose(1, 2).flatten(2)
        hidden = hidden + F.linear(x, w["self_attn.o_proj.weight"])
        x = _rms(hidden, w["post_attention_layernorm.weight"])
        gate = F.silu(F.linear(x, w["mlp.gate_proj.weight"]))
        x = gate * F.linear(x, w["mlp.up_proj.weight"])
        hidden = hidden + F.linear(x, w["mlp.down_proj.weight"])
    return _rms(hidden, weights[f"{prefix}norm.weight"])


def _embedded(weights, tokens, patches):
    words = F.embedding(tokens, weights["language_model.model.embed_tokens.weight"])
    return torch.cat([words[:, :1], patches, words[:, 1:]], dim=1)


def logits(weights, tokens, pixels, heads):
    """(vocabulary,) of the token after the last."""
    hidden = language(weights, _embedded(weights, tokens, projected(weights, pixels)), heads)
    return F.linear(hidden[0, -1], weights["language_model.lm_head.weight"])


def generate(weights, tokens, pixels, heads, count):
    """Greedy, the whole sequence anew for each token."""
    found = []
    for _ in range(count):
        best = int(logits(weights, tokens, pixels, heads).argmax())
        found.append(best)
        tokens = torch.cat([tokens, torch.tensor([[best]])], dim=1)
    return found


def regress(weights, head, proprio, tokens, pixels, state, heads, horizon, numbers):
    """OFT: (horizon, numbers) in [-1, 1]; ``proprio`` and ``state`` may be None."""
    patches = projected(weights, pixels)
    if proprio is not None:
        x = F.gelu(F.linear(state, proprio["fc1.weight"], proprio["fc1.bias"]))
        x = F.linear(x, proprio["fc2.weight"], proprio["fc2.bias"])
        patches = torch.cat([patches, x[:, None]], dim=1)
    stop = torch.tensor([[2]])
    prompt = _embedded(weights, tokens, patches)
    table = weights["language_model.model.embed_tokens.weight"]
    empty = torch.zeros(1, horizon * numbers, prompt.shape[2])
    sequence = torch.cat([prompt, empty, F.embedding(stop, table)], dim=1)
    hidden = language(weights, sequence, heads, causal=False)
    first = patches.shape[1] + tokens.shape[1] - 1
    hidden = hidden[:, first : first + horizon * numbers].reshape(1, horizon, -1)
    h = {k.removeprefix("model."): v for k, v in head.items()}
    x = F.layer_norm(hidden, hidden.shape[-1:], h["layer_norm1.weight"], h["layer_norm1.bias"])
    x = F.relu(F.linear(x, h["fc1.weight"], h["fc1.bias"]))
    for block in range(2):
        p = f"mlp_resnet_blocks.{block}.ffn."
        y = F.layer_norm(x, x.shape[-1:], h[f"{p}0.weight"], h[f"{p}0.bias"])
        x = x + F.relu(F.linear(y, h[f"{p}1.weight"], h[f"{p}1.bias"]))
    x = F.layer_norm(x, x.shape[-1:], h["layer_norm2.weight"], h["layer_norm2.bias"])
    return F.linear(x, h["fc2.weight"], h["fc2.bias"])[0]
